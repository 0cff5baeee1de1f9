"""Numbers: arrays in, arrays out; nothing here knows a file, a store or a WCS."""
