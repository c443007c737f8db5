"""Guards: checks on one request that are no quota. Pure, and each a refusal or nothing."""
