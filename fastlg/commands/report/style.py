"""How the page looks: light and dark by the reader's setting, narrow and wide, on paper."""

STYLE = """
:root { --ground: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --accent: #0060a0;
  --warn: #fff4d6; --warn-line: #c98a00; }
@media screen and (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1d2127; --ink: #e4e7eb;
  --soft: #a2abb6; --line: #373e47; --accent: #6cb6ff; --warn: #332a12; --warn-line: #c98a00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1.25rem 3rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
.subtitle, figcaption, caption, footer { color: var(--soft); }
.subtitle { margin: 0; }
.badges { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; padding: 0; list-style: none; }
.badges li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; }
.badges b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.badges span { color: var(--soft); font-size: .85rem; }
.verdict { background: var(--card); border-left: 4px solid var(--accent); padding: .75rem 1rem; max-width: none;
  font-size: 1.05rem; }
.note { background: var(--warn); border-left: 4px solid var(--warn-line); padding: .5rem .9rem; max-width: none; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; padding: 0; margin: 1rem 0; list-style: none; }
figure { margin: 1rem 0; }
figure > picture > img { max-width: 100%; height: auto; }
figcaption, caption { font-size: .9rem; text-align: left; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; max-width: 22rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
caption { padding-bottom: .4rem; }
.bar { display: inline-block; width: 7rem; height: .6rem; background: var(--line); border-radius: .3rem; }
.bar span { display: block; height: 100%; background: var(--accent); border-radius: .3rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .3rem 1.25rem; margin: .75rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem; overflow: auto;
  max-height: 32rem; font: .85rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
details > summary { cursor: pointer; color: var(--accent); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem; padding: 0;
  margin: 1rem 0; list-style: none; }
.cards li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem;
  font-size: .9rem; }
.cards img { display: block; margin: 0 auto .5rem; max-width: 100%; object-fit: contain; }
.cards p { margin: 0; }
.views td, .views th { border: 0; padding: .2rem .5rem .2rem 0; }
.views tbody th { max-width: 9rem; font-size: .85rem; font-weight: 400; color: var(--soft); }
.views thead th { max-width: 7.5rem; }
.views img { display: block; }
.pixels { image-rendering: pixelated; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 2rem; }
footer { margin-top: 3rem; font-size: .85rem; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  h2, h3 { break-after: avoid; } figure, .cards li, tr, .verdict, .note { break-inside: avoid; }
  pre { max-height: none; white-space: pre-wrap; } .wide { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
