"""Pure functions on lists of visible blocks; `flashcupy.block_mask` is their public face.

A mask is worked on as a sorted vector of block keys, ``((b * H + h) * nq + i) * nk + j``, with one id per key: a
pattern number, or `lists.FULL`. `lists.assemble` turns that into the six arrays of the public layout and is the only
place that knows their normal form.
"""
