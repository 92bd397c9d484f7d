"Settings for all tests."
import sys
import pytest

def pytest_addoption(parser): parser.addoption('--runslow', action='store_true', help='the large set of faults (tests/test_faults.py)')

@pytest.fixture(autouse=True, scope='module')
def global_flags():
    "Importing torch.testing._internal forbids to set torch.backends flags in the whole process; users of the library never import it, so allow it again"
    if 'torch' in sys.modules: sys.modules['torch'].backends.flags_frozen.__globals__['__allow_nonbracketed_mutation_flag'] = True
