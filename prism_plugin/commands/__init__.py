"""The subcommands of ``prism``, one file each."""
