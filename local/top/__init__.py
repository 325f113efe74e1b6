"""`./stack top`: the stack as a live table in the terminal, read from Prometheus.

Why rich and not textual: one frame is drawn in three ways (live, as text by --once, as a picture by
--svg), must work without UTF-8, and needs six keys. Rich draws it, with four packages; textual, an
application framework on top of rich, draws widgets that are Unicode only, and needs more packages.
"""
