// In the place of CuPy's header, of which nothing is used.
