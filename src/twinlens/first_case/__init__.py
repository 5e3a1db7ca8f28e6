"""The case that started this: Gemma 2 in TransformerLens 2.3.0, mended stage by stage.

`python -m twinlens.first_case` (`make first-case`) makes a random Gemma 2, records transformers
4.43.2 (eager and sdpa) and TransformerLens 2.3.0, names what differs, mends it step by step in
TransformerLens itself, and proves that nothing is left. `--full` takes the geometry of the released
2b, `--write FILE` writes what was measured as a page of the documentation.
"""
