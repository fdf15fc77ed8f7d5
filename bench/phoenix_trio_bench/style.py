"""The style sheet of the benchmark's pages, light and dark."""

from __future__ import annotations

__all__ = ["SHEET"]

SHEET = """
:root{--page:#f6f7fa;--card:#fff;--ink:#1a2030;--soft:#5b6475;--line:#dfe3eb;--ours:#3a62dd;
--peer:#a9b2c3;--good:#0d7a45;--bad:#b3431d;--whisker:#1a2030}
@media(prefers-color-scheme:dark){:root{--page:#12151c;--card:#1b202b;--ink:#e8ebf2;--soft:#9aa4b8;
--line:#2e3544;--ours:#7093ff;--peer:#5d677c;--good:#4cc98a;--bad:#ff9268;--whisker:#e8ebf2}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem 1rem 3rem;max-width:74rem;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.2;margin:.6rem 0}
h2{font-size:1.15rem;margin:2rem 0 .7rem}
.lead{font-size:1.1rem;max-width:52rem;margin:.6rem 0 1.2rem}
.soft{color:var(--soft);font-size:.87rem;font-weight:400}
p.soft{max-width:52rem}
.cards,.tiles{display:grid;gap:.8rem}
.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,20.5rem),1fr));align-items:start}
.tiles{grid-template-columns:repeat(auto-fit,minmax(min(100%,10.4rem),1fr))}
figure,.tile,details{margin:0;padding:.8rem .9rem;background:var(--card);
border:1px solid var(--line);border-radius:.6rem}
figcaption{font-weight:600;margin-bottom:.5rem;line-height:1.35}
figcaption .soft{display:block}
.tile{display:flex;flex-direction:column}
.tile>span:first-child{font-size:.87rem;font-weight:600}
.tile strong{font-size:1.7rem;line-height:1.3}
.tile small{font-size:.9rem;font-weight:400;color:var(--soft)}
svg{display:block;width:100%;max-width:26rem;height:auto}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
svg .name{font-size:12px;font-weight:600}
svg .value{font-size:12.5px;font-weight:600}
svg text.small{font-size:10.5px;fill:var(--soft)}
svg circle{opacity:.75}
svg .ours{fill:var(--ours)}
svg .peer{fill:var(--peer)}
svg text.name{fill:var(--ink)}
svg text.ours{fill:var(--ours)}
.whisker,.axis,.grid,.mark,.curve,.limit,.loss{fill:none;stroke:var(--soft);stroke-width:1}
.whisker{stroke:var(--whisker)}
.grid{stroke:var(--line)}
.mark{stroke:var(--whisker)}
.curve{stroke:var(--ours);stroke-width:1.5}
.wash{fill:var(--ours);opacity:.2}
.limit{stroke:var(--bad);stroke-dasharray:4 3}
.loss{stroke:var(--bad)}
.ahead,svg text.small.ahead{color:var(--good);fill:var(--good)}
.behind,svg text.small.behind{color:var(--bad);fill:var(--bad)}
.open,svg text.small.open{color:var(--soft);fill:var(--soft);font-style:italic}
details{margin-top:2rem}
summary{cursor:pointer;font-weight:600}
table{border-collapse:collapse;width:100%;font-size:.87rem;margin-top:.6rem}
th,td{text-align:left;vertical-align:top;padding:.2rem .5rem .2rem 0}
tr.row th{padding-top:.7rem;border-top:1px solid var(--line)}
td:first-child{width:28%}
td:nth-child(2){width:26%}
""".strip()
