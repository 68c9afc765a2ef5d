"""The public surface: arguments, exports, pickling, plain code."""
