const $ = id => document.getElementById(id), about = JSON.parse($('config').textContent)
const percent = p => (100 * p).toFixed(1) + ' %', readable = name => name.replaceAll('_', ' ')
let session, busy = false

function say(words, bad = false) { $('status').textContent = words; $('status').className = bad ? 'bad' : '' }

// How each of m output pixels mixes n input pixels: averages when reducing, linear when enlarging, as OpenCV
function taps(n, m) {
  const k = n / m, found = []
  for (let i = 0; i < m; i++) {
    const mix = []
    if (n <= m) {
      const c = Math.min(Math.max((i + .5) * k - .5, 0), n - 1), a = Math.floor(c)
      mix.push([a, 1 - (c - a)], [Math.min(a + 1, n - 1), c - a])
    } else for (let j = Math.floor(i * k); j < Math.min(n, (i + 1) * k); j++) {
      const w = (Math.min(j + 1, (i + 1) * k) - Math.max(j, i * k)) / k
      if (w > 1e-9) mix.push([j, w])
    }
    found.push(mix)
  }
  return found
}

// An image {data, w, h} with 4 channels, or 3, as one of w by h pixels with 3
function resized(image, w, h) {
  const across = taps(image.w, w), down = taps(image.h, h), step = image.data.length / image.w / image.h
  const rows = new Float32Array(image.h * w * 3), data = new Uint8Array(h * w * 3)
  for (let y = 0; y < image.h; y++) for (let x = 0; x < w; x++) for (const [j, share] of across[x])
    for (let c = 0; c < 3; c++) rows[(y * w + x) * 3 + c] += share * image.data[(y * image.w + j) * step + c]
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) for (let c = 0; c < 3; c++) {
    let sum = 0
    for (const [j, share] of down[y]) sum += share * rows[(j * w + x) * 3 + c]
    data[(y * w + x) * 3 + c] = Math.round(sum)
  }
  return { data, w, h }
}

// The middle square of an image with 3 channels; k is how far it has been reduced
function square({ data, w, h }, k) {
  const side = Math.min(w, h), start = n => Math.floor(Math.floor((n - side) / 2 * k) / k)
  const left = start(w), top = start(h), out = new Uint8Array(side * side * 3)
  for (let y = 0; y < side; y++) out.set(data.subarray(((top + y) * w + left) * 3, ((top + y) * w + left + side) * 3), y * side * 3)
  return { data: out, w: side, h: side }
}

// The steps of pets_nb/engine/pixels.py: reduce to 2.25 times the size, cut the middle square, reduce again
function pixels(source, width, height) {
  const canvas = $('view'), fit = Math.min(1, Math.sqrt(16e6 / width / height))
  if (Math.min(width, height) < 8) throw Error(`This image is ${width} by ${height} pixels, which is too small.`)
  const w = canvas.width = Math.round(width * fit), h = canvas.height = Math.round(height * fit)
  const context = canvas.getContext('2d', { willReadFrequently: true })
  context.imageSmoothingQuality = 'high'
  context.fillStyle = '#fff'
  context.fillRect(0, 0, w, h)
  context.drawImage(source, 0, 0, w, h)
  const short = Math.round(2.25 * about.size), scale = short / Math.min(w, h)
  let image = { data: context.getImageData(0, 0, w, h).data, w, h }
  image = scale <= 1 / 1.5 ? resized(image, Math.round(w * scale), Math.round(h * scale)) : resized(image, w, h)
  return resized(square(image, Math.max(1, w / image.w)), about.size, about.size).data
}

async function classify(source, width, height) {
  const input = new session.ort.Tensor('uint8', pixels(source, width, height), [1, about.size, about.size, 3])
  $('view').hidden = false
  $('hint').hidden = true
  const found = await session.run({ pixels: input }), p = [...found.probabilities.data]
  const best = p.map((q, i) => [q, i]).sort((a, b) => b[0] - a[0]).slice(0, 5)
  $('answers').replaceChildren(...best.map(([q, i]) => {
    const li = document.createElement('li'), line = document.createElement('div'), track = document.createElement('span')
    const name = document.createElement('span'), value = document.createElement('b'), bar = document.createElement('i')
    name.className = 'name'
    name.textContent = readable(about.classes[i])
    value.textContent = percent(q)
    track.className = 'track'
    bar.style.width = percent(q).replace(' ', '')
    li.dataset.class = about.classes[i]
    li.dataset.probability = q
    line.append(name, value)
    track.append(bar)
    li.append(line, track)
    return li
  }))
  const known = about.threshold == null || found.evidence.data[0] >= about.threshold
  say(known ? '' : 'This looks like none of the classes that the network knows. The closest are:')
}

async function once(work) {
  if (busy || !session) return
  busy = true
  $('answers').replaceChildren()
  say('Looking …')
  try { await work() } catch (e) { $('view').hidden = true; $('hint').hidden = false; say(e.message, true) }
  busy = false
}

const open = file => once(async () => {
  stop()
  let image
  try { image = await createImageBitmap(file) } catch {
    throw Error(`“${file.name || 'This file'}” can’t be read as an image. Try a JPEG, PNG or WebP file.`)
  }
  await classify(image, image.width, image.height)
  image.close()
})

function stop() {
  for (const track of $('video').srcObject?.getTracks() ?? []) track.stop()
  $('video').srcObject = null
  $('video').hidden = true
  $('camera').textContent = 'Use the camera'
}

$('camera').onclick = async () => {
  const video = $('video')
  if (video.srcObject) return once(async () => { await classify(video, video.videoWidth, video.videoHeight); stop() })
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } })
    await video.play()
  } catch (e) { stop(); return say(`The camera can’t be used (${e.message}).`, true) }
  $('hint').hidden = $('view').hidden = true
  video.hidden = false
  $('answers').replaceChildren()
  $('camera').textContent = 'Take the picture'
  say('The picture stays in this browser.')
}
$('choose').onclick = () => $('file').click()
$('file').onchange = () => { if ($('file').files[0]) open($('file').files[0]); $('file').value = '' }
for (const kind of ['dragover', 'dragleave', 'drop']) addEventListener(kind, e => {
  e.preventDefault()
  $('drop').classList.toggle('over', kind === 'dragover')
  const file = kind === 'drop' && e.dataTransfer.files[0]
  if (file) open(file)
  else if (kind === 'drop') once(async () => { throw Error('That was not a file. Save the image first, then drop its file here.') })
})
addEventListener('paste', e => { if (e.clipboardData.files[0]) open(e.clipboardData.files[0]) })

$('lead').textContent = `${about.classes.length} classes, one answer, and how sure the network is of it. Your images never leave this browser.`
$('about').textContent = `${about.arch}, ${about.size} × ${about.size} pixels, ${about.made}. Runs on onnxruntime-web ${about.runtime} (MIT licence).`
try {
  if (location.protocol === 'file:') throw Error('Browsers don’t let a page load a network from the disk. In its folder, run “python -m http.server” and open http://localhost:8000')
  const ort = await import('./ort.wasm.bundle.min.mjs')
  ort.env.wasm.numThreads = 1
  ort.env.wasm.wasmPaths = { wasm: new URL('ort-wasm-simd-threaded.wasm', location.href).href }
  session = await ort.InferenceSession.create(new URL('model.onnx', location.href).href)
  session.ort = ort
  $('choose').disabled = $('camera').disabled = false
  $('camera').hidden = !navigator.mediaDevices
  say('Choose, drop or paste an image, or use the camera.')
} catch (e) { say(location.protocol === 'file:' ? e.message : `The network can’t be loaded (${e.message}).`, true) }
