"""What a sample is: data set descriptions, radar codes, window sources, sample order, synthetic storms."""
