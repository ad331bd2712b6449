// Decoded photos: JPEG by libjpeg, PNG by libpng, PPM by hand.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

struct Picture {
    std::int64_t height = 0;
    std::int64_t width = 0;
    std::vector<std::uint8_t> rgb;  // row by row, three bytes a pixel
};

// Reads a photo as RGB, 8 bits a channel; alpha is dropped and not blended. With `upright` it is
// turned by its EXIF orientation. Throws std::runtime_error.
Picture readPicture(const std::filesystem::path& file, bool upright);
