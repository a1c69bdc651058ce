#include "picture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "refused.h"
#include "tensors.h"

namespace edge {
namespace {

constexpr int kPrecision = 32 - 8 - 2;  // bits after the point of a weight, as in Pillow
constexpr std::size_t kLargestFile = 3 * kLargestPicture + 4096;

// What one pixel of the result is made of.
struct Taps {
  std::size_t first;
  std::vector<std::int32_t> weights;
};

std::vector<Taps> taps(std::size_t from, std::size_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to), support = std::max(scale, 1.0), narrow = 1.0 / support;
  std::vector<Taps> found(to);
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
    found[i].first = first;
    for (const double weight : weights) found[i].weights.push_back(static_cast<std::int32_t>(0.5 + weight / sum * (1 << kPrecision)));
  }
  return found;
}

// Resizes the middle one of three extents: [outer, from, inner] to [outer, to, inner].
Bytes squeezed(const Bytes& data, std::size_t outer, std::size_t from, std::size_t to, std::size_t inner) {
  Bytes found(outer * to * inner);
  const std::vector<Taps> made = taps(from, to);
  for (std::size_t o = 0; o < outer; ++o) {
    for (std::size_t t = 0; t < to; ++t) {
      for (std::size_t i = 0; i < inner; ++i) {
        std::int32_t sum = 1 << (kPrecision - 1);
        const std::uint8_t* source = data.data() + (o * from + made[t].first) * inner + i;
        for (const std::int32_t weight : made[t].weights) sum += weight * *source, source += inner;
        found[(o * to + t) * inner + i] = static_cast<std::uint8_t>(std::clamp(sum >> kPrecision, 0, 255));
      }
    }
  }
  return found;
}

// Binary PGM or PPM: a magic, width, height and highest value in words, one blank, then the pixels.
Pixels read_pnm(const Bytes& bytes, const std::string& where) {
  std::size_t at = 2, numbers[3] = {0, 0, 0};
  for (std::size_t& number : numbers) {
    while (at < bytes.size() && (std::isspace(bytes[at]) || bytes[at] == '#')) {
      if (bytes[at] == '#') {
        while (at < bytes.size() && bytes[at] != '\n') ++at;
      } else {
        ++at;
      }
    }
    std::size_t digits = 0;
    for (; at < bytes.size() && std::isdigit(bytes[at]) && digits < 9; ++at, ++digits) number = number * 10 + (bytes[at] - std::size_t{'0'});
    if (digits == 0) throw Refused(where + " is no readable PGM or PPM file");
  }
  Pixels found;
  found.channels = bytes[1] == '5' ? 1 : 3;
  found.size = {numbers[1], numbers[0]};
  if (numbers[2] != 255) throw Refused(where + " has values up to " + std::to_string(numbers[2]) + "; 255 can be read");
  check_size(found.size, where);
  const std::size_t wanted = numbers[0] * numbers[1] * found.channels;
  if (at >= bytes.size() || !std::isspace(bytes[at]) || bytes.size() - at - 1 < wanted) throw Refused(where + " is cut short");
  const auto start = bytes.begin() + static_cast<std::ptrdiff_t>(at + 1);
  found.data.assign(start, start + static_cast<std::ptrdiff_t>(wanted));
  return found;
}

Pixels from_raw(Bytes bytes, const std::string& where, const Preprocess& sees, const Size& frame) {
  check_size(frame, where);
  const std::size_t wanted = frame.height * frame.width * sees.channels();
  if (bytes.size() != wanted) {
    throw Refused(where + " has " + std::to_string(bytes.size()) + " bytes; a " + (sees.gray ? "gray" : "rgb") + " frame of " +
                  words(frame) + " (height x width) has " + std::to_string(wanted) + "; --frame names another size");
  }
  return {frame, sees.channels(), std::move(bytes)};
}

Pixels from_array(Tensor array, const std::string& where, const Preprocess& sees) {
  const auto& shape = array.shape;
  const bool gray = shape.size() == 2, colour = shape.size() == 3 && shape[2] == 3;
  if (array.dtype != "|u1" || !(sees.gray ? gray : colour)) {
    throw Refused(where + " holds " + array.words() + "; wanted are uint8 [height, width] for gray, uint8 [height, width, 3] for rgb " +
                  "(this model: " + (sees.gray ? "gray" : "rgb") + "), or float32 (1, 3, " + std::to_string(sees.size.height) + ", " +
                  std::to_string(sees.size.width) + ")");
  }
  check_size({shape[0], shape[1]}, where);
  return {{shape[0], shape[1]}, sees.channels(), std::move(array.data)};
}

}  // namespace

void check_size(const Size& size, const std::string& where) {
  if (size.height == 0 || size.width == 0 || size.height > kLongestSide || size.width > kLongestSide ||
      size.height > kLargestPicture / size.width) {
    throw Refused(where + " has " + words(size) + " pixels (height x width); refused");
  }
}

std::string words(const Size& size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

Pixels resized(const Pixels& from, const Size& size) {
  Pixels found = from;
  if (size.width != from.size.width) {
    found.data = squeezed(found.data, from.size.height, from.size.width, size.width, from.channels);
  }
  if (size.height != from.size.height) {
    found.data = squeezed(found.data, 1, from.size.height, size.height, size.width * from.channels);
  }
  found.size = size;
  return found;
}

Pixels recoloured(const Pixels& from, std::size_t channels) {
  if (channels == from.channels) return from;
  Pixels found{from.size, channels, Bytes(from.size.height * from.size.width * channels)};
  for (std::size_t i = 0; i < from.size.height * from.size.width; ++i) {
    if (channels == 3) {
      for (std::size_t c = 0; c < 3; ++c) found.data[3 * i + c] = from.data[i];
    } else {  // ITU-R 601-2, in Pillow's fixed point
      const std::uint8_t* rgb = from.data.data() + 3 * i;
      found.data[i] = static_cast<std::uint8_t>((rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16);
    }
  }
  return found;
}

std::vector<float> normalised(const Pixels& pixels, const Preprocess& sees) {
  const std::size_t count = pixels.size.height * pixels.size.width;
  std::vector<float> found(3 * count);
  for (std::size_t c = 0; c < 3; ++c) {
    const float scale = static_cast<float>(1.0 / 255) / sees.std[c], shift = sees.mean[c] / sees.std[c];
    const std::size_t channel = pixels.channels == 3 ? c : 0;
    for (std::size_t i = 0; i < count; ++i) {
      found[c * count + i] = static_cast<float>(pixels.data[i * pixels.channels + channel]) * scale - shift;
    }
  }
  return found;
}

std::vector<float> prepare(const std::string& path, const Preprocess& sees, const Size& frame) {
  const std::string kind = std::filesystem::path(path).extension().string();
  Bytes bytes = read_file(path, kLargestFile);
  Pixels pixels;
  if (kind == ".raw") {
    pixels = from_raw(std::move(bytes), path, sees, frame);
  } else if (kind == ".npy") {
    Tensor array = read_npy(bytes, path);
    if (array.dtype == "<f4" && array.shape == std::vector<std::size_t>{1, 3, sees.size.height, sees.size.width}) {
      std::vector<float> input = array.floats();
      if (!std::all_of(input.begin(), input.end(), [](float value) { return std::isfinite(value); })) {
        throw Refused(path + " holds values that are not numbers, or not finite");
      }
      return input;
    }
    pixels = from_array(std::move(array), path, sees);
  } else if (bytes.size() > 8 && std::memcmp(bytes.data(), "\x89PNG\r\n\x1a\n", 8) == 0) {
    pixels = read_png(bytes, path);
  } else if (bytes.size() > 2 && bytes[0] == 'P' && (bytes[1] == '5' || bytes[1] == '6')) {
    pixels = read_pnm(bytes, path);
  } else {
    throw Refused(path + " is none of PNG, PGM and PPM (binary), .npy and .raw; run.py reads more kinds");
  }
  return normalised(resized(recoloured(pixels, sees.channels()), sees.size), sees);
}

}  // namespace edge
