"""One decode and the sample's crop, as uint8 on the device: four ways to the same pixels."""
