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

constexpr double kSharpness = -0.75;  // of the bicubic curve without antialiasing, as in pixels.py

std::int32_t to_fixed_point(double weight) {
  return static_cast<std::int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kPrecision));
}

// Pillow's filters, at a distance in output pixels.
double filter_height(Interpolation interpolation, double x) {
  switch (interpolation) {
    case Interpolation::kArea:
      return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    case Interpolation::kBicubic:
      x = std::fabs(x);
      if (x < 1) return ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
    default:
      return std::max(0.0, 1.0 - std::fabs(x));
  }
}

double filter_reach(Interpolation interpolation) {
  return interpolation == Interpolation::kArea ? 0.5 : interpolation == Interpolation::kBicubic ? 2.0 : 1.0;
}

Filter antialiased_filter(std::size_t position, std::size_t from, std::size_t to, Interpolation interpolation) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), stretch = std::max(scale, 1.0), narrow = 1.0 / stretch;
  const double reach = filter_reach(interpolation) * stretch, centre = (static_cast<double>(position) + 0.5) * scale;
  const auto first = static_cast<std::size_t>(std::max(centre - reach + 0.5, 0.0));
  const auto last = std::min(static_cast<std::size_t>(centre + reach + 0.5), from);
  std::vector<double> weights;
  double sum = 0;
  for (std::size_t x = first; x < last; ++x) {
    weights.push_back(filter_height(interpolation, (static_cast<double>(x) - centre + 0.5) * narrow));
    sum += weights.back();
  }
  Filter filter{first, {}};
  for (const double weight : weights) filter.weights.push_back(to_fixed_point(weight / sum));
  return filter;
}

double near_curve(double x) { return ((kSharpness + 2) * x - (kSharpness + 3)) * x * x + 1; }
double far_curve(double x) { return ((kSharpness * x - 5 * kSharpness) * x + 8 * kSharpness) * x - 4 * kSharpness; }

// As point_taps in pixels.py; beyond an edge its pixel goes on, so what falls there is added to its weight.
Filter point_filter(std::size_t position, std::size_t from, std::size_t to, Interpolation interpolation) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double centre = (static_cast<double>(position) + 0.5) * scale - 0.5, start = std::floor(centre), x = centre - start;
  const std::vector<double> weights = interpolation == Interpolation::kBicubic
                                          ? std::vector<double>{far_curve(x + 1), near_curve(x), near_curve(1 - x), far_curve(2 - x)}
                                          : std::vector<double>{1 - x, x};
  const auto end = static_cast<std::ptrdiff_t>(from) - 1;
  const auto inside = [&](std::size_t tap) {
    const std::ptrdiff_t before = interpolation == Interpolation::kBicubic ? 1 : 0;
    const std::ptrdiff_t pixel = static_cast<std::ptrdiff_t>(start) - before + static_cast<std::ptrdiff_t>(tap);
    return static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(pixel, 0, end));
  };
  Filter filter{inside(0), std::vector<std::int32_t>(inside(weights.size() - 1) - inside(0) + 1)};
  for (std::size_t tap = 0; tap < weights.size(); ++tap) filter.weights[inside(tap) - filter.first] += to_fixed_point(weights[tap]);
  return filter;
}

// The pixels `first` to `first + count` of an axis.
struct Span {
  std::size_t first, count;
};

// Resizes the middle one of three extents, [outer, from, inner], to `to`, and keeps a span of it: [outer, span.count, inner].
Bytes resize_axis(const Bytes& pixels, std::size_t outer, std::size_t from, std::size_t to, std::size_t inner, Span span,
                  const Resampling& resampling) {
  Bytes resized(outer * span.count * inner);
  std::vector<Filter> filters;
  for (std::size_t t = 0; t < span.count; ++t) {
    if (from == to) {
      filters.push_back({span.first + t, {1 << kPrecision}});
    } else {
      const auto make = resampling.antialias ? antialiased_filter : point_filter;
      filters.push_back(make(span.first + t, from, to, resampling.interpolation));
    }
  }
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t t = 0; t < span.count; ++t) {
      for (std::size_t i = 0; i < inner; ++i) {
        std::int32_t sum = 1 << (kPrecision - 1);
        const std::uint8_t* source = pixels.data() + (o * from + filters[t].first) * inner + i;
        for (const std::int32_t weight : filters[t].weights) sum += weight * *source, source += inner;
        resized[(o * span.count + t) * inner + i] = static_cast<std::uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
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

Image resize(Image image, const Size& size, const Window& window, const Resampling& resampling) {
  const Size from = image.size;
  if (size.width != from.width || window.size.width != from.width) {
    image.pixels = resize_axis(image.pixels, from.height, from.width, size.width, image.channels, {window.left, window.size.width}, resampling);
  }
  if (size.height != from.height || window.size.height != from.height) {
    image.pixels = resize_axis(image.pixels, 1, from.height, size.height, window.size.width * image.channels,
                               {window.top, window.size.height}, resampling);
  }
  image.size = window.size;
  return image;
}

}  // namespace edge
