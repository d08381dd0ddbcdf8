"""The frame of `report.html`: markup around the body, and the style, light and dark."""

from siri.report.charts import DARK, LIGHT


def style() -> str:
    """The page's CSS; its colours are those of the pictures."""
    light, dark = (";".join(f"--{name}:{colour}" for name, colour in theme.items()) for theme in (LIGHT, DARK))
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{CSS}"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · SIRI</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 "Helvetica Neue",Arial,"Liberation Sans",system-ui,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:880px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:32px;line-height:1.15;margin:0 0 8px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:18px;margin:40px 0 8px}
h3{font-size:14px;margin:0 0 8px}
small{font-weight:400;color:var(--muted);font-size:13px}
p{margin:0 0 12px}
.eyebrow{color:var(--muted);font-size:13px;margin:0 0 4px}
.muted,.note,figcaption,dt,thead th{color:var(--muted)}
.muted{overflow-wrap:anywhere}
.note,figcaption{font-size:13px}
.note{margin-top:12px}
.lead{margin:20px 0 8px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:16px;margin-top:24px}
.tile{border:1px solid var(--grid);border-left:4px solid var(--ink);border-radius:6px;padding:14px 16px}
.tile.low{border-left-color:var(--low)}
.tile.high{border-left-color:var(--high)}
.figures{display:flex;flex-wrap:wrap;gap:8px 28px}
.figures b{display:block;font-size:28px;line-height:1.15;font-variant-numeric:tabular-nums;white-space:nowrap}
.figures span{font-size:13px;color:var(--muted);white-space:nowrap}
figure{margin:32px 0 0}
img{display:block;width:100%;height:auto}
figcaption{margin-top:8px}
.scroll{overflow-x:auto}
.scroll+.scroll{margin-top:20px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--paper)}
td:last-child,th:last-child{padding-right:0}
thead th{font-weight:400;font-size:13px;vertical-align:bottom}
tbody th{font-weight:600}
tr.low th{color:var(--low)}
tr.high th{color:var(--high)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:0 32px;margin:0;font-size:14px}
dl div{display:flex;justify-content:space-between;gap:16px;padding:6px 0;border-bottom:1px solid var(--grid)}
dt{flex:none}
dd{margin:0;text-align:right;overflow-wrap:anywhere}
details{margin-top:16px;font-size:14px}
summary{cursor:pointer;color:var(--muted)}
pre{overflow-x:auto;font-size:12.5px;line-height:1.45}
@media(max-width:640px){main{padding:24px 16px 48px}h1{font-size:26px}.figures b{font-size:24px}figure{margin-top:24px}}
@media print{main{max-width:none;padding:0}.tile,figure{break-inside:avoid}}
"""
