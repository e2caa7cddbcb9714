"""From the spool to the locked object."""
