"""Paddle Serving itself as a runtime: the published packages 0.9.0, in a Python of their own.

A folder is written (``work_folder``) with models, config.yml, labels, index and one of the service scripts
(``scripts/``, which run on Python 3.6 to 3.9), and the published pipeline is started in it (``launch``) by an
interpreter that has the packages (``interpreter``; ``install`` makes one).
"""
