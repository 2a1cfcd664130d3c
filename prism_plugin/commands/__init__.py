"""The commands of ``prism``: one file a command, with ``add_parser`` and ``run``."""
