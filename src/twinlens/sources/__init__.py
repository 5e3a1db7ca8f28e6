"""How each implementation is built and called.

These files also run inside other environments: they import nothing but the standard library,
torch, safetensors and, inside their functions, the implementation that they build.
"""
