"""Data: the datamodule, its splits and samplers, tables, downloads."""
