// The interactive figures of lessons 4, 6 and 7: plain JavaScript, no other file, nothing fetched.
// A page asks for one with <div data-figure="softmax"></div>; without JavaScript the static figure above it remains.
(() => {
  'use strict'
  const math = {
    softmax(a) { const top = Math.max(...a), e = a.map(o => Math.exp(o - top)), s = e.reduce((x, y) => x + y); return e.map(o => o / s) },
    crossEntropy(a, t) { const top = Math.max(...a); return top + Math.log(a.reduce((s, o) => s + Math.exp(o - top), 0)) - a[t] },
    gradient(a, t) { return math.softmax(a).map((p, i) => p - (i === t)) },
    // fastai's rules, each given the rates and the smoothed losses
    minimum(lrs, v) { return lrs[v.indexOf(Math.min(...v))] / 10 },
    steep(lrs, v) {
      const slopes = v.slice(1).map((o, i) => (o - v[i]) / (Math.log(lrs[i + 1]) - Math.log(lrs[i])))
      return lrs[slopes.indexOf(Math.min(...slopes))] },
    valley(lrs, v) {
      const n = v.length, length = Array(n).fill(1)
      let start = 0, end = 0
      for (let i = 1; i < n; i++) for (let j = 0; j < i; j++) {
        if (v[i] < v[j] && length[i] < length[j] + 1) length[i] = length[j] + 1
        if (length[end] < length[i]) { end = i; start = end - length[end] } }
      const third = (end - start) / 3
      return lrs.at(start + Math.trunc(third) + Math.trunc(third / 2)) },
    slide(lrs, v, width = 15, thresh = .005) {
      const n = v.length, slope = v.map((o, i) => i === 0 ? v[1] - v[0] : i === n - 1 ? v[i] - v[i - 1] : (v[i + 1] - v[i - 1]) / 2)
      let right = -1, left = right - width, found = lrs.at(left)
      while (left >= -n && Math.abs(slope.at(right) - slope.at(left)) > thresh) { found = lrs.at(left); right--; left-- }
      return found },
    smooth(losses, beta = .98) { let mean = 0; return losses.map((o, i) => (mean = beta * mean + (1 - beta) * o) / (1 - beta ** (i + 1))) },
    oneCycle(pos, start, middle, end, pct = .25) {
      const cosine = (a, b, t) => a + (b - a) * (1 - Math.cos(Math.PI * t)) / 2
      return pos < pct ? cosine(start, middle, pos / pct) : cosine(middle, end, (pos - pct) / (1 - pct)) },
    groupRates(low, high, n) { return Array.from({length: n}, (_, i) => low * (high / low) ** (i / (n - 1))) },
    // A sweep's losses: flat, a fall of `depth` around `centre`, then an explosion; with the same noise for the same seed
    sweep(n, centre, depth, noise, seed = 1) {
      let s = seed
      const random = () => (s = (s * 16807) % 2147483647) / 2147483647
      const lrs = Array.from({length: n}, (_, i) => 1e-7 * 1e8 ** (i / n))
      const losses = lrs.map(lr => { const x = Math.log10(lr) - centre
        return 3.6 - depth / (1 + Math.exp(-3 * x)) + .4 * Math.exp(2.5 * (x - 1.6)) + noise * (random() + random() - 1) })
      return [lrs, losses] } }
  const COLOURS = ['#3d8fc4', '#d55e00', '#1f9d7a', '#b565a0']
  const power = o => o.toExponential(1).replace(/e(.+)/, (_, n) => ' × 10' + [...String(+n)].map(c => c === '-' ? '⁻' : '⁰¹²³⁴⁵⁶⁷⁸⁹'[c]).join('')), f2 = o => o.toFixed(2).replace('-', '−')
  const el = (parent, tag, attrs = {}, text) => {
    const svg = ['svg', 'path', 'rect', 'line', 'text', 'circle'].includes(tag)
    const e = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag)
    for (const k in attrs) e.setAttribute(k, attrs[k])
    if (text !== undefined) e.textContent = text
    parent.append(e)
    return e }
  let made = 0
  function build(box, title, sliders, describe, draw) {
    box.className = 'interactive'; box.setAttribute('role', 'group'); box.setAttribute('aria-label', title)
    el(box, 'p', {class: 'interactive-title'}, title)
    const controls = el(box, 'div', {class: 'interactive-controls'}), values = {}
    const svg = el(box, 'svg', {viewBox: '0 0 640 260', 'aria-hidden': 'true'}), said = el(box, 'p', {'aria-live': 'polite'})
    const update = () => { svg.replaceChildren(); draw(svg, values); said.textContent = describe(values) }
    for (const [name, label, min, max, step, start, show = f2] of sliders) {
      const id = `interactive-${++made}`, line = el(controls, 'div'), l = el(line, 'label', {for: id}, label + ' ')
      const out = el(l, 'output', {for: id}), input = el(line, 'input', {id, type: 'range', min, max, step, value: start})
      const read = () => { values[name] = +input.value; out.textContent = show(+input.value); input.setAttribute('aria-valuetext', show(+input.value)) }
      input.addEventListener('input', () => { read(); update() }); read() }
    update() }
  const write = (svg, x, y, text, attrs = {}) => el(svg, 'text', {x, y, fill: 'currentColor', 'font-size': 17, ...attrs}, text)
  const rule = (svg, x1, y1, x2, y2) => el(svg, 'line', {x1, y1, x2, y2, stroke: 'currentColor', 'stroke-opacity': .5})
  const curve = (svg, points, colour, width = 3) => el(svg, 'path', {d: 'M' + points.map(o => o.map(v => v.toFixed(2)).join()).join('L'), fill: 'none', stroke: colour, 'stroke-width': width})

  const kinds = {
    softmax(box) {
      const names = ['Birman (true)', 'Siamese', 'Ragdoll'], of = v => [v.a, v.b, v.c]
      build(box, 'Move a logit: how do the probabilities, the loss and the gradient change?',
        names.map((o, i) => ['abc'[i], `Logit of ${o}`, -5, 5, .1, [1, .5, -1][i]]),
        v => { const a = of(v); return `Probabilities ${math.softmax(a).map(f2).join(', ')}; loss −log ${f2(math.softmax(a)[0])} = ${f2(math.crossEntropy(a, 0))}; gradient p − y: ${math.gradient(a, 0).map(f2).join(', ')}.` },
        (svg, v) => {
          const p = math.softmax(of(v)), g = math.gradient(of(v), 0)
          write(svg, 170, 22, 'probability p'); write(svg, 420, 22, 'gradient p − y'); rule(svg, 520, 35, 520, 250)
          names.forEach((o, i) => { const y = 45 + 70 * i
            write(svg, 0, y + 28, o)
            el(svg, 'rect', {x: 170, y, width: 160 * p[i], height: 40, fill: COLOURS[i ? 0 : 1]}); write(svg, 176 + 160 * p[i], y + 29, f2(p[i]))
            el(svg, 'rect', {x: 520 + Math.min(0, g[i]) * 100, y, width: Math.abs(g[i]) * 100, height: 40, fill: COLOURS[i ? 0 : 1], 'fill-opacity': .6})
            write(svg, g[i] < 0 ? 528 : 512, y + 29, f2(g[i]), {'text-anchor': g[i] < 0 ? 'start' : 'end'}) }) }) },
    finder(box) {
      const rules = ['minimum', 'steep', 'valley', 'slide'], of = v => { const [lrs, l] = math.sweep(100, v.centre, v.depth, v.noise); return [lrs, math.smooth(l)] }
      build(box, 'Change the curve: which rate does each of the four rules pick?',
        [['centre', 'Where the loss falls: 10 to the power of', -5, -1, .1, -3], ['depth', 'How far it falls', 0, 3, .1, 2], ['noise', 'Noise of a batch', 0, 2, .1, .3]],
        v => { const [lrs, l] = of(v); return `Rates: ${rules.map(o => `${o} ${power(math[o](lrs, l))}`).join('; ')}. The curve is invented; the rules are fastai's.` },
        (svg, v) => {
          const [lrs, l] = of(v), low = Math.min(...l), top = Math.min(Math.max(...l), l[0] + .5) // the explosion may leave the picture
          const x = lr => 40 + 580 * (Math.log10(lr) + 8) / 9, y = o => Math.max(28, 40 + 170 * (top - o) / Math.max(top - low, .5))
          rule(svg, 40, 225, 620, 225)
          for (let e = -8; e <= 0; e += 2) write(svg, x(10 ** e), 246, `1e${e}`.replace('-', '−'), {'text-anchor': 'middle', 'font-size': 15})
          curve(svg, lrs.map((o, i) => [x(o), y(l[i])]), 'currentColor', 2)
          rules.forEach((o, i) => { const at = x(math[o](lrs, l))
            el(svg, 'line', {x1: at, x2: at, y1: 30, y2: 225, stroke: COLOURS[i], 'stroke-width': 3, 'stroke-dasharray': ['', '8 4', '3 3', '12 3 3 3'][i]})
            el(svg, 'line', {x1: 55 + 150 * i, x2: 85 + 150 * i, y1: 14, y2: 14, stroke: COLOURS[i], 'stroke-width': 3, 'stroke-dasharray': ['', '8 4', '3 3', '12 3 3 3'][i]}); write(svg, 92 + 150 * i, 19, o) }) }) },
    onecycle(box) {
      const groups = ['early layers', 'late layers', 'head'], shown = o => power(10 ** o)
      const at = (v, pos) => math.groupRates(10 ** v.high / v.spread, 10 ** v.high, 3).map(o => math.oneCycle(pos, o / 25, o, o / 1e5, v.pct))
      build(box, 'One cycle, with a rate for each group of layers',
        [['high', 'Highest rate of the head', -4, -1, .1, -2.7, shown], ['spread', 'Head : early layers', 1, 1000, 1, 100, o => String(o)], ['pct', 'Turning point', .05, .95, .05, .25], ['pos', 'Position in training', 0, 1, .01, .25]],
        v => `At ${Math.round(100 * v.pos)}% of the training: ${at(v, v.pos).map((o, i) => `${groups[i]} ${power(o)}`).join('; ')}.`,
        (svg, v) => {
          const low = -11, x = o => 76 + 380 * o, y = o => 225 - 200 * (Math.max(Math.log10(o), low) - low) / (-.8 - low)
          rule(svg, 76, 225, 456, 225); rule(svg, x(v.pos), 20, x(v.pos), 225)
          for (let e = -10; e <= -2; e += 2) write(svg, 68, y(10 ** e) + 6, `1e${e}`.replace('-', '−'), {'text-anchor': 'end', 'font-size': 15})
          write(svg, 266, 252, 'position in training', {'text-anchor': 'middle', 'font-size': 15})
          groups.forEach((o, i) => {
            curve(svg, Array.from({length: 201}, (_, k) => [x(k / 200), y(at(v, k / 200)[i])]), COLOURS[i])
            el(svg, 'circle', {cx: x(v.pos), cy: y(at(v, v.pos)[i]), r: 6, fill: COLOURS[i]})
            el(svg, 'rect', {x: 466, y: 146 - 36 * i - 13, width: 14, height: 14, fill: COLOURS[i]}); write(svg, 486, 146 - 36 * i, o, {'font-size': 16}) }) }) } }
  window.petsFigures = math
  const start = () => document.querySelectorAll('[data-figure]').forEach(o => { if (!o.childElementCount) kinds[o.dataset.figure](o) })
  document.readyState === 'loading' ? document.addEventListener('DOMContentLoaded', start) : start()
})()
