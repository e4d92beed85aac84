"""Port 14444 to the HTTP port: a NAT rule, or a second listener."""
