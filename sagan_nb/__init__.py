"Self-Attention GAN, a book that is a package. The names of `DOORS` are imported when they are first used."
__version__ = "0.1.0"

DOORS = dict(              # name -> where it is; a chapter's own name, such as spectral_norm, stays the chapter
    SelfAttention='self_attention', Generator='networks', Discriminator='networks', PRESETS='config', at_scale='config',
    open_source='data', open_run='machinery.door', load_weights='interop', evaluate='machinery.evaluate',
    show_attention='attention_maps')
__all__ = [*DOORS]


def __getattr__(name:str):
    "Import the module of a door."
    from importlib import import_module
    if name not in DOORS: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{DOORS[name]}', __name__), name)


def __dir__()->list:
    "List what there is, with what is not imported yet."
    return sorted({*globals(), *DOORS})
