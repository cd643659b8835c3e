"""What every service knows of tenants: the policies that quota owns and pushes, as values, and the cache that follows them."""
