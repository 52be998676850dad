"""Prepare, index and check datasets; make the embedded one."""
