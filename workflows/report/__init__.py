"""`mmsearch report`: one self-contained page about one run, or about several side by side.

    sources.py     a run's folder -> RunFacts: numbers, curves, settings, and what is not there
    comparing.py   settings that differ, runs that differ in nothing but seeds, means over seeds
    tables.py      results.json -> columns and cells
    scales.py, charts.py, bars.py   numbers -> SVG
    curves.py      metrics.jsonl -> which charts
    sampling.py    which episodes are shown; episodes.py: what is shown of one
    pictures.py    blobs -> data: addresses, within a budget
    page.py        all of it -> HTML, by page.html, *.css and *.js beside it (colours.css is the service's, too)
    run.py         the command

Nothing that a model, the web or a person wrote becomes markup: Jinja2 escapes, data travels as JSON whose `<` is
escaped, and the page's own scripts write text alone. A content security policy forbids every request.
"""
