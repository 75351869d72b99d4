"""Speed and memory of muwa against plain references, as ratios measured in one run: `python -m bench.search` and so on."""
