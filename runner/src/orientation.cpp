#include "orientation.h"

#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "error.h"

namespace edge {
namespace {

constexpr std::size_t kOrientation = 274;

// Bytes a value, by TIFF's type; and the types that are whole numbers.
const std::map<std::size_t, std::size_t> kTypeSizes = {{1, 1}, {2, 1}, {3, 2},  {4, 4},  {5, 8},  {6, 1},  {7, 1},
                                                       {8, 2}, {9, 4}, {10, 8}, {11, 4}, {12, 8}, {13, 4}, {16, 8}};
const std::set<std::size_t> kWholeNumbers = {3, 4, 6, 8, 9, 13, 16};

class TiffReader {
 public:
  TiffReader(const std::uint8_t* data, std::size_t size) : data_(data), size_(size), little_(data[0] == 'I') {}

  std::size_t read(std::size_t at, std::size_t bytes) const {
    std::size_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) value = value << 8 | data_[at + (little_ ? bytes - 1 - i : i)];
    return value;
  }

  // The tag in the first directory; like Pillow it stops at an entry whose values lie outside.
  std::optional<unsigned> orientation() const {
    const std::size_t start = read(4, 4);
    if (start > size_ || size_ - start < 2) return std::nullopt;
    const std::size_t entries = read(start, 2);
    std::size_t total = 0;
    for (std::size_t i = 0; i < entries && size_ - start - 2 >= 12 * (i + 1); ++i) {
      const std::size_t at = start + 2 + 12 * i, type = read(at + 2, 2), count = read(at + 4, 4);
      const auto unit = kTypeSizes.find(type);
      if (unit == kTypeSizes.end()) continue;
      std::size_t values = at + 8;
      if (count > 4 / unit->second) {  // they lie elsewhere
        total += count * unit->second;
        if (total > size_) continue;  // Pillow skips what claims more than the file holds
        values = read(at + 8, 4);
        if (values > size_ || size_ - values < count * unit->second) return std::nullopt;
      }
      if (read(at, 2) != kOrientation || count == 0) continue;
      return kWholeNumbers.count(type) ? static_cast<unsigned>(read(values, unit->second)) : 1;
    }
    return std::nullopt;
  }

 private:
  const std::uint8_t* data_;
  const std::size_t size_;
  const bool little_;
};

std::optional<unsigned> orientation_of_exif(const Bytes& exif, const std::string& file) {
  const std::uint8_t* data = exif.data();
  std::size_t size = exif.size();
  for (int i = 0; i < 2 && size >= 6 && std::memcmp(data, "Exif\0\0", 6) == 0; ++i) data += 6, size -= 6;
  if (size == 0) return std::nullopt;
  const std::string magic(data, data + (size < 8 ? 0 : 4));
  if (magic != std::string("II\x2a\0", 4) && magic != std::string("MM\0\x2a", 4) && magic != std::string("II\0\x2a", 4) &&
      magic != std::string("MM\x2a\0", 4)) {  // the last two are wrong, and Pillow reads them
    throw Error(file + " has EXIF that cannot be read; remove it, or write it anew");
  }
  return TiffReader(data, size).orientation();
}

// tiff:Orientation="6" or <tiff:Orientation>6</tiff:Orientation>
std::optional<unsigned> orientation_of_xmp(const std::string& xmp) {
  const std::string name = "tiff:Orientation";
  for (std::size_t at = xmp.find(name); at != std::string::npos; at = xmp.find(name, at + 1)) {
    std::size_t value = at + name.size();
    if (xmp.compare(value, 2, "=\"") == 0) {
      value += 2;
    } else if (xmp.compare(value, 1, ">") == 0) {
      value += 1;
    } else {
      continue;
    }
    if (value < xmp.size() && xmp[value] >= '0' && xmp[value] <= '9') return static_cast<unsigned>(xmp[value] - '0');
  }
  return std::nullopt;
}

}  // namespace

unsigned read_orientation(const Bytes& exif, const std::string& xmp, const std::string& file) {
  std::optional<unsigned> orientation = orientation_of_exif(exif, file);
  if (!orientation) orientation = orientation_of_xmp(xmp);
  return orientation.value_or(1);
}

}  // namespace edge
