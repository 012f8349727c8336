"""The Python behind the C interface, bindings/flashcupy.h: arguments of C in, calls of flashcupy, a status out.

`build` makes the libraries. `entries` has the functions that they call; it is imported inside a C program, and so are
`tensors` (memory of the caller's as arrays), `options`, `calls`, `masks` (block masks by handle), `status` (exceptions
as statuses) and `log`.
"""
