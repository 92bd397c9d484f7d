"Complete the pages that Quarto made: fold the exported source, whose signature stands above it, make no header of an empty cell, and load nothing from other servers."
import html, re, sys
from pathlib import Path

def summary(code):
    "The line that stands for the exported `code` while it is folded"
    names = re.findall(r'^(?:def|class) (\w+)', code, re.M)
    return 'Source of '+', '.join(f'<code>{o}</code>' for o in names) if names else 'Exported source'

def fold(found): return f'<details class="code-fold">\n<summary>{summary(html.unescape(re.sub("<[^>]+>", "", found[2])))}</summary>{found[2]}</details>'

def complete(text):
    # Quarto loads require.js and jQuery from a CDN wherever an output is HTML; nothing here uses them
    text = re.sub(r'<script src="https://cdnjs\.cloudflare\.com/[^"]*"[^>]*></script>\n?', '', text)
    text = re.sub(r'<script type="application/javascript">define\(\'jquery\'.*?</script>\n?', '', text, flags=re.S)
    text = re.sub(r'<th\b([^>]*)>\s*</th>', r'<td\1></td>', text) # pandas leaves the corner of a table an empty header
    return re.sub(r'<details open(="")? class="code-fold">\s*<summary>Exported source</summary>(.*?)</details>', fold, text, flags=re.S)

def main(site):
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        page.write_text(complete(text), encoding='utf-8')
    outside = sorted({(p.name, o) for p in site.rglob('*.html') for o in
        re.findall(r'<(?:script|link|img|iframe|source)[^>]*?(?:src|href)="(https?://[^"]+)"', p.read_text(encoding='utf-8'))
        if 'pets-nb.github.io' not in o})
    if outside: raise SystemExit('these pages load from other servers:\n'+'\n'.join(map(str, outside)))

if __name__=='__main__': main(Path(sys.argv[1]))
