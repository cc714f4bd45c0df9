"""Files for where servers run, with the models and options of one service filled in: `pdserve export NAME`.

Reached by commands/exports.EXPORTS. ``deploy/`` of the repository is what is written for a service with its
defaults; deploy/write.py does that.
"""
