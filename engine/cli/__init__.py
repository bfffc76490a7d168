"""The command line, which is also the disaster-recovery tool: needs no service and no Django (docs/cli.md)."""
