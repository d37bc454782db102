"""The page's style sheet: light, dark, print and phone. Nothing is loaded from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f6f4; --card: #ffffff; --ink: #1b211d; --faint: #647068; --rule: #e3e8e4; --hover: #0b6b451a;
  --student: #0f8a5c; --teacher: #7a4bd0; --untrained: #8d9691;
  --good: #0f8a5c; --doubtful: #a86b0c; --bad: #c0362c; --unknown: #5d6b75;
  --good-soft: #e5f4ed; --doubtful-soft: #fbf1de; --bad-soft: #fbe9e7; --unknown-soft: #ebeff1;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #101412; --card: #181e1b; --ink: #e5ebe7; --faint: #98a59d; --rule: #29312c; --hover: #5fd3a01f;
    --student: #4cc491; --teacher: #b79bff; --untrained: #7f8a84;
    --good: #4cc491; --doubtful: #e0a848; --bad: #f0796d; --unknown: #9fb0ba;
    --good-soft: #14291f; --doubtful-soft: #2d2412; --bad-soft: #321a18; --unknown-soft: #1f272b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 48px; }
header { display: flex; gap: 14px; align-items: center; margin-bottom: 20px; }
header svg { width: 42px; height: 42px; flex: none; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 34px 0 12px; }
h3 { font-size: 0.95rem; line-height: 1.3; margin: 0; }
p { margin: 0; }
.faint, figcaption, .about { color: var(--faint); }
.about { font-size: 0.88rem; overflow-wrap: anywhere; }
.verdict { border-radius: 12px; padding: 18px 22px; border-left: 6px solid; background: var(--card); }
.verdict strong { display: block; font-size: 1.3rem; line-height: 1.3; margin-bottom: 4px; }
.verdict p { font-size: 1.02rem; max-width: 74ch; }
.good { border-color: var(--good); background: var(--good-soft); } .good strong { color: var(--good); }
.doubtful { border-color: var(--doubtful); background: var(--doubtful-soft); }
.doubtful strong { color: var(--doubtful); }
.bad { border-color: var(--bad); background: var(--bad-soft); } .bad strong { color: var(--bad); }
.unknown { border-color: var(--unknown); background: var(--unknown-soft); } .unknown strong { color: var(--unknown); }
.warnings { list-style: none; margin: 12px 0 0; padding: 0; display: grid; gap: 8px; }
.warnings li { position: relative; padding: 10px 14px 10px 38px; border-radius: 10px; }
.warnings li { background: var(--doubtful-soft); }
.whole { white-space: nowrap; }
.warnings li::before {
  content: "!"; position: absolute; left: 13px; top: 12px; width: 17px; height: 17px; border-radius: 50%;
  background: var(--doubtful); color: var(--card); font: 700 12px/17px system-ui, sans-serif;
  text-align: center;
}
.overview { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; margin-top: 14px; }
.overview.alone { grid-template-columns: minmax(0, 1fr); }
.card, figure { background: var(--card); border-radius: 12px; padding: 16px 18px; margin: 0; }
figure { display: flex; flex-direction: column; }
figure svg { margin-top: auto; }
.bars { margin-top: 14px; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 14px 18px;
  align-content: center; margin: 0;
}
.tiles dt { color: var(--faint); font-size: 0.82rem; }
.tiles dd { margin: 0; font-size: 1.28rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles small { display: block; font-size: 0.8rem; font-weight: 400; color: var(--faint); }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
figcaption { font-size: 0.82rem; line-height: 1.4; margin: 2px 0 8px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 6px; padding: 0; }
.legend { font-size: 0.82rem; }
.legend b { font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: 18px; border-top: 3px solid var(--of); }
.swatch { vertical-align: middle; margin-right: 5px; }
.student { --of: var(--student); } .teacher { --of: var(--teacher); } .untrained { --of: var(--untrained); }
.raw { --of: var(--student); }
.untrained .swatch { border-top-style: dotted; } .teacher .swatch { border-top-style: dashed; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg text { fill: var(--ink); font-size: 12px; }
svg .tick { fill: var(--faint); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .label { fill: var(--faint); font-size: 11px; }
svg .rule { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--untrained); stroke-width: 1; fill: none; }
svg .line { fill: none; stroke: var(--of); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .line.raw { stroke-width: 1; opacity: 0.28; }
svg .line.teacher { stroke-dasharray: 7 5; } svg .line.untrained { stroke-dasharray: 1 5; }
svg circle { fill: var(--of); }
svg .bar rect { fill: var(--of); } svg .bar .name { font-size: 12.5px; }
svg .bar .figure { font-size: 13.5px; font-weight: 600; }
svg .hover rect { fill: transparent; } svg .hover circle, svg .hover path { opacity: 0; }
svg .hover path { stroke: var(--of, var(--faint)); stroke-width: 1; }
svg .hover:hover circle, svg .hover:hover path { opacity: 1; }
.pairs { columns: 3 250px; column-gap: 34px; margin: 0; }
.pairs div {
  display: flex; gap: 14px; justify-content: space-between; break-inside: avoid; padding: 4px 0;
  border-bottom: 1px solid var(--rule); font-size: 0.86rem;
}
.pairs dt { color: var(--faint); flex: none; }
.pairs dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.lineage { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 22px 34px; }
.lineage .pairs { columns: 1; margin-top: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); }
td { overflow-wrap: anywhere; }
th { color: var(--faint); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.notes { margin: 0; padding-left: 20px; font-size: 0.9rem; }
footer { margin-top: 34px; color: var(--faint); font-size: 0.82rem; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  main { padding: 18px 12px 32px; } h1 { font-size: 1.22rem; }
  .overview, .charts, .lineage { grid-template-columns: minmax(0, 1fr); }
  .card, figure { padding: 14px 12px; } .verdict { padding: 14px 16px; }
  svg .tick, svg .label { font-size: 13px; } svg .bar .name { font-size: 14px; } svg .bar .figure { font-size: 15px; }
}
@media print {
  :root { --page: #ffffff; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  .card, figure { border: 1px solid var(--rule); padding: 10px 12px; }
  figure, .verdict, .warnings li, .overview, tr { break-inside: avoid; } h2 { break-after: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""

MARK = (
    '<svg viewBox="0 0 48 48" aria-hidden="true">'
    '<path d="M24 44V24" fill="none" stroke="#0f8a5c" stroke-width="3.4" stroke-linecap="round"/>'
    '<path d="M24 28C24 18 16 12 5 12c0 11 7 17 19 16z" fill="#0f8a5c"/>'
    '<path d="M24 22c0-9 7-15 18-15 1 11-6 17-18 15z" fill="#4cc491"/>'
    '<path d="M12 44h24" fill="none" stroke="#8a6a4a" stroke-width="3.4" stroke-linecap="round"/></svg>'
)
"""A seedling."""
