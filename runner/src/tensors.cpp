#include "tensors.h"

#include <cstring>

#include "inflate.h"
#include "refused.h"

namespace edge {
namespace {

constexpr std::size_t kMostElements = std::size_t{1} << 28;
constexpr std::size_t kMostEntries = 64;

std::size_t little(const Bytes& bytes, std::size_t at, int count) {
  std::size_t found = 0;
  for (int i = count - 1; i >= 0; --i) found = found << 8 | bytes[at + static_cast<std::size_t>(i)];
  return found;
}

// What stands behind `'name': ` in the header, which is a Python dictionary as NumPy always writes it.
std::string entry(const std::string& header, const std::string& name, char first, char last, const std::string& where) {
  const std::string wanted = "'" + name + "': ";
  const std::size_t at = header.find(wanted);
  const std::size_t start = at == std::string::npos ? header.size() : at + wanted.size();
  const std::size_t end = header.find(last, start + 1);
  if (start >= header.size() || header[start] != first || end == std::string::npos) {
    throw Refused(where + " has no readable NumPy header");
  }
  return header.substr(start + 1, end - start - 1);
}

std::size_t element_size(const std::string& dtype, const std::string& where) {
  static const std::map<std::string, std::size_t> sizes = {{"|u1", 1}, {"<f4", 4}, {"<i8", 8}};
  const auto found = sizes.find(dtype);
  if (found == sizes.end()) throw Refused(where + " holds " + dtype + "; uint8, float32 and int64 can be read");
  return found->second;
}

std::vector<std::size_t> shape_of(const std::string& text, const std::string& where) {
  std::vector<std::size_t> found;
  std::size_t at = 0, elements = 1;
  while (at < text.size()) {
    std::size_t extent = 0, digits = 0;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9' && digits < 10; ++at, ++digits) {
      extent = extent * 10 + static_cast<std::size_t>(text[at] - '0');
    }
    if (digits == 0 || extent > kMostElements || (extent != 0 && elements > kMostElements / extent)) {
      throw Refused(where + " has no readable shape, or too large a one");
    }
    elements *= extent;
    found.push_back(extent);
    at += text.compare(at, 2, ", ") == 0 ? 2 : at < text.size() && text[at] == ',' ? 1 : 0;
  }
  return found;
}

}  // namespace

std::size_t Tensor::count() const {
  std::size_t found = 1;
  for (const std::size_t extent : shape) found *= extent;
  return found;
}

std::vector<float> Tensor::floats() const {
  if (dtype != "<f4") throw Refused("float32 is wanted, given is " + words());
  std::vector<float> found(count());
  if (!found.empty()) std::memcpy(found.data(), data.data(), data.size());
  return found;
}

std::string Tensor::words() const {
  std::string text = dtype + " (";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

Tensor read_npy(const Bytes& bytes, const std::string& where) {
  if (bytes.size() < 10 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0 || (bytes[6] != 1 && bytes[6] != 2)) {
    throw Refused(where + " is no .npy file");
  }
  const std::size_t start = bytes[6] == 1 ? 10 : 12;
  if (bytes.size() < start) throw Refused(where + " is cut short");
  const std::size_t length = little(bytes, 8, bytes[6] == 1 ? 2 : 4);
  if (length > bytes.size() - start) throw Refused(where + " is cut short");
  const std::string header(bytes.begin() + static_cast<std::ptrdiff_t>(start), bytes.begin() + static_cast<std::ptrdiff_t>(start + length));
  if (header.find("'fortran_order': False") == std::string::npos) throw Refused(where + " is not in C order");
  Tensor found;
  found.dtype = entry(header, "descr", '\'', '\'', where);
  found.shape = shape_of(entry(header, "shape", '(', ')', where), where);
  const std::size_t wanted = found.count() * element_size(found.dtype, where);
  if (bytes.size() - start - length != wanted) throw Refused(where + " is longer or shorter than its header says");
  found.data.assign(bytes.begin() + static_cast<std::ptrdiff_t>(start + length), bytes.end());
  return found;
}

std::map<std::string, Tensor> read_npz(const Bytes& bytes, const std::string& where) {
  constexpr std::size_t tail = 22;  // the record at the end, without a comment
  const auto fail = [&]() -> void { throw Refused(where + " is no readable .npz file"); };
  if (bytes.size() < tail) fail();
  const std::size_t end = bytes.size() - tail;
  if (little(bytes, end, 4) != 0x06054b50) fail();
  const std::size_t entries = little(bytes, end + 10, 2);
  std::size_t at = little(bytes, end + 16, 4);
  if (entries > kMostEntries) fail();
  std::map<std::string, Tensor> found;
  for (std::size_t i = 0; i < entries; ++i) {
    if (at > end || end - at < 46 || little(bytes, at, 4) != 0x02014b50) fail();
    const std::size_t flags = little(bytes, at + 8, 2), method = little(bytes, at + 10, 2), crc = little(bytes, at + 16, 4);
    const std::size_t packed = little(bytes, at + 20, 4), size = little(bytes, at + 24, 4), name_length = little(bytes, at + 28, 2);
    const std::size_t more = little(bytes, at + 30, 2) + little(bytes, at + 32, 2), local = little(bytes, at + 42, 4);
    if (end - at - 46 < name_length || flags & 1 || size > kMostElements * 8) fail();
    const std::string name(bytes.begin() + static_cast<std::ptrdiff_t>(at + 46),
                           bytes.begin() + static_cast<std::ptrdiff_t>(at + 46 + name_length));
    at += 46 + name_length + more;
    if (local > end || end - local < 30 || little(bytes, local, 4) != 0x04034b50) fail();
    const std::size_t start = local + 30 + little(bytes, local + 26, 2) + little(bytes, local + 28, 2);
    if (start > end || end - start < packed || (method == 0 && packed != size)) fail();
    // DEFLATE makes at most 1032 bytes of one: what claims more would only cost memory
    if ((method != 0 && method != 8) || (method == 8 && size / 1032 > packed)) fail();
    const std::uint8_t* from = bytes.data() + start;
    const Bytes content = method == 0 ? Bytes(from, from + size) : inflate(from, packed, size, where);
    if (crc32(content.data(), content.size()) != crc) throw Refused(where + " is damaged: checksum of " + name);
    const std::size_t dot = name.rfind(".npy");
    if (!found.emplace(name.substr(0, dot), read_npy(content, where + ": " + name)).second) fail();
  }
  return found;
}

}  // namespace edge
