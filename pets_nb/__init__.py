__version__ = "0.1.0"

# fastai (2.8.12) still uses torch.jit.script, which torch 2.15 announces with a FutureWarning at import; it is no concern of a user of this package.
import warnings as _warnings
_warnings.filterwarnings('ignore', message=r'.*torch\.jit\.script.*is deprecated', category=FutureWarning)
