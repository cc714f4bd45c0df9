"""The index: the vectors and labels of a gallery, built, changed, searched and published.

::

    gallery  ─► embedding ─► change ─► publish ─► folder ─► search
    (what)      (vectors)    (which)   (switch)   (read)    (answers)

vectors.py is the only module that knows faiss, id_map.py the only one that knows pickles.
"""
