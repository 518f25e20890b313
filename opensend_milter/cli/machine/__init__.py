"""What touches the host, or stands in for one."""
