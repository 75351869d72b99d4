"""Speed and memory of muwa beside plain references, as ratios of one run (`python -m bench.search`)."""
