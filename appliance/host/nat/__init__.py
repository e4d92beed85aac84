"""Port 14444 redirected to the HTTP port: by a NAT rule, or by a second listener.

Modules:
    legacy: the redirect by python-iptables, for kernels that have only the legacy tables.
    nft: the redirect by nftables.
    redirect: decides which way it is done.
"""
