"""The style of the report page: one sheet, light or dark as the reader's system is set."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f5f6f8; --card: #ffffff; --ink: #1b2330; --soft: #566175; --rule: #dde2ea;
  --mark: #2456c4; --gain: #1a7f4b; --loss: #b3372b; --even: #7a8496; --shade: #eef2fb;
  --s0: #7a8496; --s1: #2456c4; --s2: #c2571a; --s3: #1a7f4b; --s4: #8a3fb0; --s5: #b3372b;
  --s6: #0f7f8f; --s7: #8c6d0c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #11151b; --card: #191f27; --ink: #e6eaf1; --soft: #9aa6b8; --rule: #2f3846;
    --mark: #7da6ff; --gain: #58c48c; --loss: #f08377; --even: #8d98aa; --shade: #202938;
    --s0: #98a3b5; --s1: #7da6ff; --s2: #f0995a; --s3: #58c48c; --s4: #c792ea; --s5: #f08377;
    --s6: #56c5d4; --s7: #d8b545;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 36px 20px 64px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 0 0 12px; max-width: 78ch; }
.soft, figcaption { color: var(--soft); }
section, .tiles > div {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
}
section { padding: 22px 24px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(184px, 1fr)); gap: 14px; }
.tiles { margin-top: 22px; }
.tiles > div { padding: 14px 18px; }
.tiles dt { color: var(--soft); font-size: 13px; }
.tiles dd { margin: 0; font-size: 25px; font-weight: 650; letter-spacing: -0.01em; }
.tiles dd small { display: block; font-size: 13px; font-weight: 400; color: var(--soft); }
.tiles dd small { letter-spacing: 0; }
.scroll { overflow-x: auto; }
.scroll + p { margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
table { font-size: 13.5px; }
caption { text-align: left; color: var(--soft); padding-bottom: 6px; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid var(--rule); vertical-align: bottom; }
td, tbody th { border-bottom: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 500; }
thead th { white-space: normal; }
th:first-child, td:first-child, .text { text-align: left; }
tr.best > * { background: var(--shade); font-weight: 650; }
tr.group th { color: var(--soft); font-weight: 600; padding-top: 14px; }
.gain { color: var(--gain); } .loss { color: var(--loss); }
figure { margin: 12px 0 0; }
figure + .scroll { margin-top: 14px; }
figure .scroll svg { min-width: 720px; }
svg { display: block; width: 100%; height: auto; font: 12px/1 system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .tick, svg .axis { fill: var(--soft); }
svg .number { font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .zero { stroke: var(--soft); stroke-width: 1.5; }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg .bar { fill: var(--even); opacity: 0.55; }
svg .bar.gain { fill: var(--gain); } svg .bar.loss { fill: var(--loss); }
svg .dot { fill: var(--mark); stroke: var(--card); stroke-width: 1.5; }
svg .dot.gain { fill: var(--gain); } svg .dot.loss { fill: var(--loss); }
svg .dot.even { fill: var(--even); }
svg .series path { fill: none; stroke: currentColor; stroke-width: 2; }
svg .series .dot, svg .series .name { fill: currentColor; }
svg .series .name { font-weight: 600; }
svg .name { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
svg .series .whisker, svg .leader { stroke: currentColor; }
svg .leader { stroke-width: 1; opacity: 0.6; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }
.s6 { color: var(--s6); } .s7 { color: var(--s7); }
.d1 path { stroke-dasharray: 6 3; } .d2 path { stroke-dasharray: 2 3; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--soft); }
article { border-top: 1px solid var(--rule); padding-top: 14px; margin-top: 18px; }
article:first-of-type { border-top: 0; }
.ask { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 4px 28px; }
.ask ol { margin: 4px 0 12px; padding-left: 22px; }
.lists td { white-space: normal; min-width: 118px; overflow-wrap: anywhere; }
.lists td, .lists tbody th { text-align: left; vertical-align: top; }
.lists th { text-align: left; white-space: normal; }
.lists td.hit { background: var(--shade); font-weight: 650; }
footer { color: var(--soft); font-size: 13px; margin-top: 24px; }
@media print { section, .tiles > div { break-inside: avoid; } body { background: none; } }
"""
