"""What touches the machine of a sysadmin."""
