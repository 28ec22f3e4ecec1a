"""The door for those who have no identities: files in, weights, an audit or leaks out.

``python -m cid`` is its command line. Embeddings need only what ``pip install .`` installs; photographs need
``pip install '.[faces]'``, which is imported when a photograph is opened and not before.
"""
