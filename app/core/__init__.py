"""Commands of RouterModelCustom's guide that name its modules (docs/compatibility.md)."""
