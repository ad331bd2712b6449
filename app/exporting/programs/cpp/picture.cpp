#include "picture.hpp"

#include <cstdio>  // which jpeglib.h needs and does not include
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include <jpeglib.h>
#include <png.h>

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::int64_t maxPixels = 50'000'000;

Picture allocated(std::int64_t height, std::int64_t width) {
    if (height < 1 || width < 1 || height > maxPixels / width) {
        throw std::runtime_error("the picture is empty or too large");
    }
    return {height, width, Bytes(static_cast<std::size_t>(height * width * 3))};
}

// The orientation in an EXIF block (EXIF 2.32, table 4); 1 where there is none.
int orientation(const std::uint8_t* data, std::size_t length) {
    if (length < 14 || std::string(data, data + 4) != "Exif") return 1;
    const std::uint8_t* tiff = data + 6;
    const std::size_t size = length - 6;
    const bool little = tiff[0] == 'I';
    const auto number = [&](std::size_t at, int bytes) {
        std::uint32_t value = 0;
        for (int i = 0; i < bytes && at + bytes <= size; ++i) {
            value |= static_cast<std::uint32_t>(tiff[at + i]) << 8 * (little ? i : bytes - 1 - i);
        }
        return value;
    };
    const std::size_t directory = number(4, 4);
    const std::uint32_t entries = number(directory, 2);
    for (std::uint32_t i = 0; i < entries; ++i) {
        const std::size_t entry = directory + 2 + std::size_t{12} * i;
        if (number(entry, 2) == 0x0112) return static_cast<int>(number(entry + 8, 2));
    }
    return 1;
}

Picture turned(const Picture& in, int turn) {
    if (turn < 2 || turn > 8) return in;
    const bool swapped = turn >= 5;
    Picture out = swapped ? allocated(in.width, in.height) : allocated(in.height, in.width);
    const bool mirrored = turn == 2 || turn == 3 || turn == 7 || turn == 8;
    const bool flipped = turn == 3 || turn == 4 || turn == 6 || turn == 7;
    std::size_t at = 0;
    for (std::int64_t y = 0; y < out.height; ++y) {
        for (std::int64_t x = 0; x < out.width; ++x) {
            const std::int64_t row = swapped ? x : y;
            const std::int64_t column = swapped ? y : x;
            const std::int64_t fromRow = flipped ? in.height - 1 - row : row;
            const std::int64_t fromColumn = mirrored ? in.width - 1 - column : column;
            const auto from = static_cast<std::size_t>((fromRow * in.width + fromColumn) * 3);
            for (std::size_t c = 0; c < 3; ++c) out.rgb[at++] = in.rgb[from + c];
        }
    }
    return out;
}

Picture readJpeg(const Bytes& bytes, bool upright) {
    jpeg_decompress_struct jpeg{};
    jpeg_error_mgr errors{};
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr info) {
        char text[JMSG_LENGTH_MAX];
        info->err->format_message(info, text);
        throw std::runtime_error(text);
    };
    jpeg_create_decompress(&jpeg);
    struct Guard {
        jpeg_decompress_struct* jpeg;
        ~Guard() { jpeg_destroy_decompress(jpeg); }
    } const guard{&jpeg};
    jpeg_mem_src(&jpeg, bytes.data(), bytes.size());
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    Picture picture = allocated(jpeg.output_height, jpeg.output_width);
    while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row =
            picture.rgb.data() + std::size_t{3} * jpeg.output_scanline * jpeg.output_width;
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    int turn = 1;
    for (const auto* marker = jpeg.marker_list; marker != nullptr; marker = marker->next) {
        if (turn == 1) turn = orientation(marker->data, marker->data_length);
    }
    return upright ? turned(picture, turn) : picture;
}

Picture readPng(const Bytes& bytes) {
    png_image png{};
    png.version = PNG_IMAGE_VERSION;
    if (!png_image_begin_read_from_memory(&png, bytes.data(), bytes.size())) {
        throw std::runtime_error(png.message);
    }
    png.format = PNG_FORMAT_RGBA;  // RGB would blend alpha with a background
    Picture picture = allocated(png.height, png.width);
    Bytes rgba(PNG_IMAGE_SIZE(png));
    if (!png_image_finish_read(&png, nullptr, rgba.data(), 0, nullptr)) {
        throw std::runtime_error(png.message);
    }
    for (std::size_t i = 0; i < rgba.size() / 4; ++i) {
        for (std::size_t c = 0; c < 3; ++c) picture.rgb[3 * i + c] = rgba[4 * i + c];
    }
    return picture;
}

Picture readPpm(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    std::int64_t width = 0;
    std::int64_t height = 0;
    int depth = 0;
    file >> magic >> width >> height >> depth;
    file.get();
    Picture picture = allocated(height, width);
    auto* target = reinterpret_cast<char*>(picture.rgb.data());
    if (magic != "P6" || depth != 255 ||
        !file.read(target, static_cast<std::streamsize>(picture.rgb.size()))) {
        throw std::runtime_error("not a PPM file");
    }
    return picture;
}

}  // namespace

Picture readPicture(const std::filesystem::path& file, bool upright) {
    std::ifstream stream(file, std::ios::binary);
    const Bytes bytes{std::istreambuf_iterator<char>(stream), {}};
    const int first = bytes.empty() ? 0 : bytes.front();
    if (first == 0xFF) return readJpeg(bytes, upright);
    if (first == 0x89) return readPng(bytes);
    if (first == 'P') return readPpm(file);
    throw std::runtime_error("not a JPEG, PNG or PPM file");
}
