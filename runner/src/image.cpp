#include "image.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace edge {
namespace {

constexpr int kPrecision = 32 - 8 - 2;  // bits after the point of a weight, as in Pillow

// The source pixels that make one pixel of the result.
struct Filter {
  std::size_t first;
  std::vector<std::int32_t> weights;
};

std::vector<Filter> make_filters(std::size_t from, std::size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), support = std::max(scale, 1.0), narrow = 1.0 / support;
  std::vector<Filter> filters(to);
  for (std::size_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto first = static_cast<std::size_t>(std::max(centre - support + 0.5, 0.0));
    const auto last = std::min(static_cast<std::size_t>(centre + support + 0.5), from);
    std::vector<double> weights;
    double sum = 0;
    for (std::size_t x = first; x < last; ++x) {
      weights.push_back(std::max(0.0, 1.0 - std::fabs((static_cast<double>(x) - centre + 0.5) * narrow)));
      sum += weights.back();
    }
    filters[i].first = first;
    for (const double weight : weights) filters[i].weights.push_back(static_cast<std::int32_t>(0.5 + weight / sum * (1 << kPrecision)));
  }
  return filters;
}

// Resizes the middle one of three extents: [outer, from, inner] to [outer, to, inner].
Bytes resize_axis(const Bytes& pixels, std::size_t outer, std::size_t from, std::size_t to, std::size_t inner) {
  Bytes resized(outer * to * inner);
  const std::vector<Filter> filters = make_filters(from, to);
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t t = 0; t < to; ++t) {
      for (std::size_t i = 0; i < inner; ++i) {
        std::int32_t sum = 1 << (kPrecision - 1);
        const std::uint8_t* source = pixels.data() + (o * from + filters[t].first) * inner + i;
        for (const std::int32_t weight : filters[t].weights) sum += weight * *source, source += inner;
        resized[(o * to + t) * inner + i] = static_cast<std::uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
      }
    }
  }
  return resized;
}

}  // namespace

std::string to_string(const Size& size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

void check_image_size(const Size& size, const std::string& file) {
  if (size.height == 0 || size.width == 0 || size.height > kMaxSide || size.width > kMaxSide || size.height > kMaxPixels / size.width) {
    throw Error(file + " has " + to_string(size) + " pixels (height x width); accepted are up to " + std::to_string(kMaxSide) +
                " a side and " + std::to_string(kMaxPixels) + " in all");
  }
}

Image apply_orientation(Image image, unsigned orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const bool transposed = orientation >= 5;
  const bool bottom_up = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool right_to_left = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const Size& from = image.size;
  const Size to = transposed ? Size{from.width, from.height} : from;
  Bytes pixels(image.pixels.size());
  std::uint8_t* next = pixels.data();
  for (std::size_t y = 0; y < to.height; ++y) {
    for (std::size_t x = 0; x < to.width; ++x, next += image.channels) {
      std::size_t row = transposed ? x : y, column = transposed ? y : x;
      if (bottom_up) row = from.height - 1 - row;
      if (right_to_left) column = from.width - 1 - column;
      std::memcpy(next, image.pixels.data() + (row * from.width + column) * image.channels, image.channels);
    }
  }
  return {to, image.channels, std::move(pixels)};
}

Image convert_channels(Image image, std::size_t channels) {
  if (channels == image.channels) return image;
  const std::size_t count = image.size.height * image.size.width;
  Image converted{image.size, channels, Bytes(count * channels)};
  for (std::size_t i = 0; i < count; ++i) {
    if (channels == 3) {
      for (std::size_t c = 0; c < 3; ++c) converted.pixels[3 * i + c] = image.pixels[i];
    } else {  // ITU-R 601-2, in Pillow's fixed point
      const std::uint8_t* rgb = image.pixels.data() + 3 * i;
      converted.pixels[i] = static_cast<std::uint8_t>((rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16);
    }
  }
  return converted;
}

Image resize(Image image, const Size& size) {
  if (size.width != image.size.width) {
    image.pixels = resize_axis(image.pixels, image.size.height, image.size.width, size.width, image.channels);
  }
  if (size.height != image.size.height) {
    image.pixels = resize_axis(image.pixels, 1, image.size.height, size.height, size.width * image.channels);
  }
  image.size = size;
  return image;
}

}  // namespace edge
