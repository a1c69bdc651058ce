// PNG (ISO/IEC 15948): all colour types and depths, interlaced or not. Transparency is dropped, as run.py does.
#include <cstring>

#include "inflate.h"
#include "picture.h"
#include "refused.h"

namespace edge {
namespace {

enum Colour : unsigned { kGray = 0, kRgb = 2, kPalette = 3, kGrayAlpha = 4, kRgbAlpha = 6 };

std::size_t big(const std::uint8_t* at, int count) {
  std::size_t found = 0;
  for (int i = 0; i < count; ++i) found = found << 8 | at[i];
  return found;
}

struct Header {
  Size size;
  unsigned depth = 0, colour = 0;
  bool interlaced = false;

  std::size_t samples() const { return colour == kRgb ? 3 : colour == kRgbAlpha ? 4 : colour == kGrayAlpha ? 2 : 1; }
  std::size_t row_bytes(std::size_t width) const { return (width * samples() * depth + 7) / 8; }
  std::size_t step() const { return samples() * depth < 8 ? 1 : samples() * depth / 8; }  // to the same sample of the pixel before
};

// Of an interlaced picture: where a pass starts and how far its pixels are from one another.
struct Pass {
  std::size_t top, left, down, right;
};
constexpr Pass kPasses[7] = {{0, 0, 8, 8}, {0, 4, 8, 8}, {4, 0, 8, 4}, {0, 2, 4, 4}, {2, 0, 4, 2}, {0, 1, 2, 2}, {1, 0, 2, 1}};
constexpr Pass kWhole = {0, 0, 1, 1};

Size part(const Size& whole, const Pass& pass) {
  return {whole.height > pass.top ? (whole.height - pass.top + pass.down - 1) / pass.down : 0,
          whole.width > pass.left ? (whole.width - pass.left + pass.right - 1) / pass.right : 0};
}

Header header_of(const std::uint8_t* data, std::size_t length, const std::string& where) {
  if (length != 13) throw Refused(where + " has no readable PNG header");
  Header found;
  found.size = {big(data + 4, 4), big(data, 4)};
  found.depth = data[8], found.colour = data[9], found.interlaced = data[12] == 1;
  const bool eight = found.depth == 8 || found.depth == 16, small = found.depth == 1 || found.depth == 2 || found.depth == 4;
  bool known = eight && (found.colour == kRgb || found.colour == kGrayAlpha || found.colour == kRgbAlpha);
  known = known || (found.colour == kGray && (eight || small)) || (found.colour == kPalette && (found.depth == 8 || small));
  if (!known || data[10] != 0 || data[11] != 0 || data[12] > 1) throw Refused(where + " has no readable PNG header");
  check_size(found.size, where);
  return found;
}

// Undoes the filter of one row, in place; `above` is the row before it, or zeros.
void unfilter(unsigned kind, std::uint8_t* row, const std::uint8_t* above, std::size_t length, std::size_t step, const std::string& where) {
  if (kind > 4) throw Refused(where + " is damaged: unknown filter");
  for (std::size_t i = 0; i < length; ++i) {
    const int left = i < step ? 0 : row[i - step], up = above[i], corner = i < step ? 0 : above[i - step];
    int guess = 0;
    if (kind == 1) guess = left;
    if (kind == 2) guess = up;
    if (kind == 3) guess = (left + up) / 2;
    if (kind == 4) {
      const int sum = left + up - corner, a = std::abs(sum - left), b = std::abs(sum - up), c = std::abs(sum - corner);
      guess = a <= b && a <= c ? left : b <= c ? up : corner;
    }
    row[i] = static_cast<std::uint8_t>(row[i] + guess);
  }
}

// The sample at an index of a row, as 8 bits; indices of a palette as they are.
std::uint8_t sample(const std::uint8_t* row, std::size_t index, const Header& header) {
  if (header.depth == 16) return row[2 * index];  // the high eight bits
  if (header.depth == 8) return row[index];
  const unsigned highest = (1u << header.depth) - 1;
  const std::size_t bit = index * header.depth;
  const unsigned found = row[bit / 8] >> (8 - header.depth - bit % 8) & highest;
  return static_cast<std::uint8_t>(header.colour == kPalette ? found : found * 255 / highest);
}

void place(const std::uint8_t* row, const Header& header, const Bytes& palette, const Pass& pass, std::size_t y, std::size_t width,
           Pixels& found, const std::string& where) {
  for (std::size_t x = 0; x < width; ++x) {
    std::uint8_t* to = found.data.data() + ((pass.top + y * pass.down) * found.size.width + pass.left + x * pass.right) * found.channels;
    if (header.colour == kPalette) {
      const std::size_t index = sample(row, x, header);
      if (3 * index + 3 > palette.size()) throw Refused(where + " is damaged: a colour that its palette lacks");
      std::memcpy(to, palette.data() + 3 * index, 3);
    } else {
      for (std::size_t c = 0; c < found.channels; ++c) to[c] = sample(row, x * header.samples() + c, header);
    }
  }
}

Pixels unpacked(const Header& header, const Bytes& packed, const Bytes& palette, const std::string& where) {
  const Pass* const passes = header.interlaced ? kPasses : &kWhole;
  const std::size_t count = header.interlaced ? 7 : 1;
  std::size_t wanted = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Size size = part(header.size, passes[i]);
    if (size.width != 0) wanted += size.height * (header.row_bytes(size.width) + 1);
  }
  // a stream of zlib: two bytes of header, DEFLATE, a checksum
  if (packed.size() < 6 || (packed[0] & 15) != 8 || big(packed.data(), 2) % 31 != 0 || packed[1] & 32 || wanted / 1032 > packed.size()) {
    throw Refused(where + " is damaged: its compressed part cannot be unpacked");
  }
  Bytes rows = inflate(packed.data() + 2, packed.size() - 6, wanted, where);
  if (adler32(rows) != big(packed.data() + packed.size() - 4, 4)) throw Refused(where + " is damaged: checksum of its pixels");
  const bool coloured = header.colour == kRgb || header.colour == kRgbAlpha || header.colour == kPalette;
  Pixels found{header.size, coloured ? std::size_t{3} : std::size_t{1}, {}};
  found.data.resize(header.size.height * header.size.width * found.channels);
  std::uint8_t* at = rows.data();
  for (std::size_t i = 0; i < count; ++i) {
    const Size size = part(header.size, passes[i]);
    if (size.width == 0) continue;
    const std::size_t length = header.row_bytes(size.width);
    const Bytes zeros(length, 0);
    const std::uint8_t* above = zeros.data();
    for (std::size_t y = 0; y < size.height; ++y, at += length + 1) {
      unfilter(at[0], at + 1, above, length, header.step(), where);
      place(at + 1, header, palette, passes[i], y, size.width, found, where);
      above = at + 1;
    }
  }
  return found;
}

// A camera's "turned by 90 degrees" (EXIF tag 274); 1 is upright.
unsigned orientation(const std::uint8_t* data, std::size_t length) {
  if (length >= 6 && std::memcmp(data, "Exif\0\0", 6) == 0) data += 6, length -= 6;  // some writers' habit
  if (length < 8) return 1;
  const bool little = data[0] == 'I';
  const auto read = [&](std::size_t at, int count) {
    std::size_t found = 0;
    for (int i = 0; i < count; ++i) found = found << 8 | data[at + static_cast<std::size_t>(little ? count - 1 - i : i)];
    return found;
  };
  const std::size_t start = read(4, 4);
  if (start > length || length - start < 2) return 1;
  const std::size_t entries = read(start, 2);
  for (std::size_t i = 0; i < entries && length - start - 2 >= 12 * (i + 1); ++i) {
    const std::size_t at = start + 2 + 12 * i;
    if (read(at, 2) == 274) return static_cast<unsigned>(read(at + 8, read(at + 2, 2) == 4 ? 4 : 2));  // a long, or a short
  }
  return 1;
}

// Whether a text of a PNG may hold EXIF or say which way is up, as ImageMagick and Adobe write it.
bool may_turn(const std::string& text) {
  const std::string keyword = text.substr(0, text.find('\0'));
  return keyword == "Raw profile type exif" || keyword == "Raw profile type APP1" ||
         (keyword == "XML:com.adobe.xmp" && text.find("Orientation") != std::string::npos);
}

}  // namespace

Pixels read_png(const Bytes& bytes, const std::string& where) {
  Header header;
  Bytes packed, palette;
  bool started = false, ended = false;
  for (std::size_t at = 8; !ended;) {
    if (bytes.size() - at < 12) throw Refused(where + " is cut short");
    const std::size_t length = big(bytes.data() + at, 4);
    if (bytes.size() - at - 12 < length) throw Refused(where + " is cut short");
    const std::string kind(bytes.begin() + static_cast<std::ptrdiff_t>(at + 4), bytes.begin() + static_cast<std::ptrdiff_t>(at + 8));
    const std::uint8_t* data = bytes.data() + at + 8;
    if (crc32(bytes.data() + at + 4, length + 4) != big(data + length, 4)) throw Refused(where + " is damaged: checksum of " + kind);
    if (started == (kind == "IHDR")) throw Refused(where + " has no readable PNG header");
    if (kind == "IHDR") {
      header = header_of(data, length, where);
      started = true;
    } else if (kind == "PLTE") {
      palette.assign(data, data + length);
    } else if (kind == "IDAT") {
      packed.insert(packed.end(), data, data + length);
    } else if (kind == "eXIf" && orientation(data, length) > 1) {
      throw Refused(where + " is to be turned before it is shown (EXIF); turn its pixels, or use run.py");
    } else if ((kind == "tEXt" || kind == "zTXt" || kind == "iTXt") && may_turn({data, data + length})) {
      throw Refused(where + " carries EXIF or XMP as text, which may say that it is to be turned; strip it, or use run.py");
    }
    ended = kind == "IEND";
    at += 12 + length;
  }
  return unpacked(header, packed, palette, where);
}

}  // namespace edge
