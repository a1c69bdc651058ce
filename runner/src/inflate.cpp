#include "inflate.h"

#include <array>

#include "refused.h"

namespace edge {
namespace {

constexpr int kLongest = 15;  // bits of a code

// A canonical Huffman code: how many codes there are of each length, and the symbols in the order of their codes.
struct Code {
  std::array<int, kLongest + 1> counts{};
  std::vector<int> symbols;
};

class Stream {
 public:
  Stream(const std::uint8_t* data, std::size_t length, std::size_t size, std::string where)
      : data_(data), length_(length), size_(size), where_(std::move(where)) {
    out_.reserve(size);
  }

  Bytes all() {
    bool last = false;
    while (!last) {
      last = bits(1) == 1;
      const unsigned kind = bits(2);
      if (kind == 0) {
        stored();
      } else if (kind == 1) {
        fixed();
      } else if (kind == 2) {
        dynamic();
      } else {
        fail();
      }
    }
    if (out_.size() != size_) fail();
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail() const { throw Refused(where_ + " is damaged: its compressed part cannot be unpacked"); }

  unsigned bits(int count) {
    while (held_ < count) {
      if (at_ >= length_) fail();
      buffer_ |= std::uint32_t{data_[at_++]} << held_;
      held_ += 8;
    }
    const unsigned found = buffer_ & ((1u << count) - 1);
    buffer_ >>= count;
    held_ -= count;
    return found;
  }

  void put(std::uint8_t byte) {
    if (out_.size() >= size_) fail();
    out_.push_back(byte);
  }

  Code code(const std::vector<int>& lengths) const {
    Code found;
    for (const int length : lengths) ++found.counts[static_cast<std::size_t>(length)];
    found.counts[0] = 0;
    int left = 1;  // codes not yet given away: fewer than none is no code
    std::array<int, kLongest + 2> offsets{};
    for (std::size_t length = 1; length <= kLongest; ++length) {
      left = 2 * left - found.counts[length];
      if (left < 0) fail();
      offsets[length + 1] = offsets[length] + found.counts[length];
    }
    found.symbols.resize(static_cast<std::size_t>(offsets[kLongest + 1]));
    for (std::size_t symbol = 0; symbol < lengths.size(); ++symbol) {
      if (lengths[symbol] == 0) continue;
      found.symbols[static_cast<std::size_t>(offsets[static_cast<std::size_t>(lengths[symbol])]++)] = static_cast<int>(symbol);
    }
    return found;
  }

  int symbol(const Code& from) {
    int code = 0, first = 0, index = 0;
    for (std::size_t length = 1; length <= kLongest; ++length) {
      code |= static_cast<int>(bits(1));
      const int count = from.counts[length];
      if (code - first < count) return from.symbols[static_cast<std::size_t>(index + code - first)];
      index += count;
      first = (first + count) << 1;
      code <<= 1;
    }
    fail();
  }

  void stored() {
    buffer_ = 0, held_ = 0;  // whole bytes are never held, so this drops only what fills the byte
    if (length_ - at_ < 4) fail();
    const unsigned size = data_[at_] | static_cast<unsigned>(data_[at_ + 1]) << 8;
    const unsigned check = data_[at_ + 2] | static_cast<unsigned>(data_[at_ + 3]) << 8;
    at_ += 4;
    if (size != (~check & 0xffffu) || length_ - at_ < size || size_ - out_.size() < size) fail();
    out_.insert(out_.end(), data_ + at_, data_ + at_ + size);
    at_ += size;
  }

  void fixed() {
    std::vector<int> lengths(288, 8);
    for (std::size_t i = 144; i < 256; ++i) lengths[i] = 9;
    for (std::size_t i = 256; i < 280; ++i) lengths[i] = 7;
    block(code(lengths), code(std::vector<int>(30, 5)));
  }

  void dynamic() {
    static constexpr std::array<std::size_t, 19> order = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const std::size_t literals = bits(5) + 257, distances = bits(5) + 1, given = bits(4) + 4;
    if (literals > 286 || distances > 30) fail();
    std::vector<int> meta(19, 0);
    for (std::size_t i = 0; i < given; ++i) meta[order[i]] = static_cast<int>(bits(3));
    const Code from = code(meta);
    std::vector<int> lengths;
    while (lengths.size() < literals + distances) {
      const int next = symbol(from);
      if (next < 16) {
        lengths.push_back(next);
        continue;
      }
      if (next == 16 && lengths.empty()) fail();
      const int repeated = next == 16 ? lengths.back() : 0;
      const std::size_t times = next == 16 ? 3 + bits(2) : next == 17 ? 3 + bits(3) : 11 + bits(7);
      lengths.insert(lengths.end(), times, repeated);
    }
    if (lengths.size() != literals + distances || lengths[256] == 0) fail();
    const auto middle = lengths.begin() + static_cast<std::ptrdiff_t>(literals);
    block(code({lengths.begin(), middle}), code({middle, lengths.end()}));
  }

  void block(const Code& literals, const Code& distances) {
    static constexpr std::array<unsigned, 29> length_base = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                                             31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static constexpr std::array<int, 29> length_more = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static constexpr std::array<unsigned, 30> back_base = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                                           193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    static constexpr std::array<int, 30> back_more = {0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    for (;;) {
      const int next = symbol(literals);
      if (next < 256) {
        put(static_cast<std::uint8_t>(next));
        continue;
      }
      if (next == 256) return;
      const std::size_t which = static_cast<std::size_t>(next) - 257;
      if (which >= length_base.size()) fail();
      const unsigned length = length_base[which] + bits(length_more[which]);
      const std::size_t far = static_cast<std::size_t>(symbol(distances));
      const std::size_t back = back_base[far] + bits(back_more[far]);
      if (back > out_.size()) fail();
      for (unsigned i = 0; i < length; ++i) put(out_[out_.size() - back]);
    }
  }

  const std::uint8_t* data_;
  const std::size_t length_, size_;
  const std::string where_;
  std::size_t at_ = 0;
  std::uint32_t buffer_ = 0;
  int held_ = 0;
  Bytes out_;
};

}  // namespace

Bytes inflate(const std::uint8_t* data, std::size_t length, std::size_t size, const std::string& where) {
  return Stream(data, length, size, where).all();
}

std::uint32_t crc32(const std::uint8_t* data, std::size_t length) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> made{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int bit = 0; bit < 8; ++bit) made[i] = made[i] & 1 ? 0xedb88320u ^ (made[i] >> 1) : made[i] >> 1;
    }
    return made;
  }();
  std::uint32_t sum = 0xffffffffu;
  for (std::size_t i = 0; i < length; ++i) sum = table[(sum ^ data[i]) & 255] ^ (sum >> 8);
  return ~sum;
}

std::uint32_t adler32(const Bytes& bytes) {
  std::uint32_t low = 1, high = 0;
  for (const std::uint8_t byte : bytes) {
    low = (low + byte) % 65521;
    high = (high + low) % 65521;
  }
  return high << 16 | low;
}

}  // namespace edge
