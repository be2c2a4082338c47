"""Train a language model on responses that it sampled itself.

The loop is `pyfast.train.loop.run`; each paper is about a page in `pyfast.train.recipes`. Importing
this package, its configuration and its data files loads neither torch nor transformers.
"""
