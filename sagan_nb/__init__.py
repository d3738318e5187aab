"Self-Attention GAN, a book that is a package. The names of `DOORS` are imported when they are first used."
import sys
from types import ModuleType

__version__ = "0.1.0"

DOORS = dict(              # name -> where it is
    SelfAttention='self_attention', spectral_norm='spectral_norm', Generator='networks', Discriminator='networks',
    PRESETS='config', at_scale='config', open_source='data', train='machinery.runs', open_run='machinery.door',
    load_weights='interop', evaluate='machinery.evaluate', attention_maps='attention_maps',
    show_attention='attention_maps')
__all__ = [*DOORS]


class Front(ModuleType):
    "The package as a module: a name of `DOORS` is that door, also where a chapter is called alike."
    def __setattr__(self, name:str, value):
        "Set an attribute. Importing the module `sagan_nb.train` would otherwise put it in the place of the function."
        if not (name in DOORS and isinstance(value, ModuleType)): super().__setattr__(name, value)

    def __dir__(self)->list:
        "List what there is, with what is not imported yet."
        return sorted({*super().__dir__(), *DOORS})

    def __getattr__(self, name:str):
        "Import the module of a door."
        if name not in DOORS: raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        module = f'{self.__name__}.{DOORS[name]}'
        __import__(module)
        setattr(self, name, getattr(sys.modules[module], name))
        return getattr(self, name)


sys.modules[__name__].__class__ = Front
