"Hand the metadata of settings.ini to setuptools (pyproject.toml names these fields as dynamic)."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
version = re.search(r'^__version__ = "(.+)"', (here/cfg['lib_path']/'__init__.py').read_text(encoding='utf-8'), re.M)[1]
statuses = {'2':'2 - Pre-Alpha', '3':'3 - Alpha', '4':'4 - Beta', '5':'5 - Production/Stable'}

setup(
    version=version, description=cfg['description'], keywords=cfg['keywords'].split(), license=cfg['license'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'],
    classifiers=[f"Development Status :: {statuses[cfg['status']]}", 'Intended Audience :: Education', 'Intended Audience :: Developers',
                 *(f'Programming Language :: Python :: {v}' for v in cfg['python_versions'].split())],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]), include_package_data=True,
    package_data={cfg['lib_path']: ['assets/*', '*.mplstyle']},
    install_requires=cfg['requirements'].split(), extras_require={o.removesuffix('_requirements'): cfg[o].split() for o in cfg if o.endswith('_requirements')},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_path']} = {cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
