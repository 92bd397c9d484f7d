"Complete the pages that Quarto made: fold the exported source, whose signature stands above it, repeat the contents for telephones, mark where one is, make no header of an empty cell, and load nothing from other servers."
import html, os, re, sys
from pathlib import Path

def summary(code):
    "The line that stands for the exported `code` while it is folded"
    names = re.findall(r'^(?:def|class) (\w+)', code, re.M)
    return 'Source of '+', '.join(f'<code>{o}</code>' for o in names) if names else 'Exported source'

def fold(found): return f'<details class="code-fold">\n<summary>{summary(html.unescape(re.sub("<[^>]+>", "", found[2])))}</summary>{found[2]}</details>'

def contents(text):
    "The page's table of contents again, folded, under its title: Quarto's own is beside the page, which a telephone has no room for"
    toc = re.search(r'<nav id="TOC".*?</h2>\s*(<ul>.*?</ul>)\s*(?=<div|</nav>)', text, re.S)
    if not toc: return text
    links = re.sub(r' (id="toc-|class="|data-scroll-target=")[^"]*"', '', toc[1])
    return re.sub(r'(<header id="title-block-header".*?)</header>', lambda m: f'{m[1]}<details class="contents"><summary>On this page</summary>{links}</details>\n</header>', text, count=1, flags=re.S)

def here(text, page):
    "Mark the bar's link to this `page` as current and no other: Quarto marks the first one everywhere, as all pages share one sidebar"
    def link(m):
        current = os.path.normpath(os.path.join(os.path.dirname(page), m[1]))==page
        return f'<a class="nav-link active" href="{m[1]}" aria-current="page">' if current else f'<a class="nav-link" href="{m[1]}">'
    return re.sub(r'<a class="nav-link(?: active)?" href="([^"]*)"(?: aria-current="page")?>', link, text)

def complete(text):
    # Quarto loads require.js and jQuery from a CDN wherever an output is HTML; nothing here uses them
    text = re.sub(r'<script src="https://cdnjs\.cloudflare\.com/[^"]*"[^>]*></script>\n?', '', text)
    text = re.sub(r'<script type="application/javascript">define\(\'jquery\'.*?</script>\n?', '', text, flags=re.S)
    text = re.sub(r' data-quarto-private-1="[^"]*"', '', text) # when nbdev ran the cell, and for how long
    text = re.sub(r'<th\b([^>]*)>\s*</th>', r'<td\1></td>', text) # pandas leaves the corner of a table an empty header
    return re.sub(r'<details open(="")? class="code-fold">\s*<summary>Exported source</summary>(.*?)</details>', fold, text, flags=re.S)

def main(site):
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        page.write_text(contents(here(complete(text), page.relative_to(site).as_posix())), encoding='utf-8')
    outside = sorted({(p.name, o) for p in site.rglob('*.html') for o in
        re.findall(r'<(?:script|link|img|iframe|source)[^>]*?(?:src|href)="(https?://[^"]+)"', p.read_text(encoding='utf-8'))
        if 'pets-nb.github.io' not in o})
    if outside: raise SystemExit('these pages load from other servers:\n'+'\n'.join(map(str, outside)))

if __name__=='__main__': main(Path(sys.argv[1]))
