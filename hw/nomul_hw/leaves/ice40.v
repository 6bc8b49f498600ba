// s = g(a, b) + f(b, c, d), where f and g are functions bit by bit; F and G hold their values for {d, c, b} and {b, a}.
// The carry takes the LUT's own inputs: what is added must be formed in front of it.
module nomul_adder_ice40 #(
    parameter WIDTH = 1,
    parameter [7:0] F = 8'b0,
    parameter [3:0] G = 4'b0
) (
    input  wire [WIDTH-1:0] a,
    input  wire [WIDTH-1:0] b,
    input  wire [WIDTH-1:0] c,
    input  wire [WIDTH-1:0] d,
    output wire [WIDTH-1:0] s
);
`ifdef SYNTHESIS
  wire [WIDTH-1:0] left = {WIDTH{G[0]}} & ~b & ~a | {WIDTH{G[1]}} & ~b & a
      | {WIDTH{G[2]}} & b & ~a | {WIDTH{G[3]}} & b & a;
  wire [WIDTH-1:0] right = {WIDTH{F[0]}} & ~d & ~c & ~b | {WIDTH{F[1]}} & ~d & ~c & b
      | {WIDTH{F[2]}} & ~d & c & ~b | {WIDTH{F[3]}} & ~d & c & b
      | {WIDTH{F[4]}} & d & ~c & ~b | {WIDTH{F[5]}} & d & ~c & b
      | {WIDTH{F[6]}} & d & c & ~b | {WIDTH{F[7]}} & d & c & b;
  wire [WIDTH-1:0] carry;
  assign carry[0] = 1'b0;
  genvar i;
  generate
    for (i = 0; i < WIDTH; i = i + 1) begin : place
      SB_LUT4 #(.LUT_INIT(16'hC33C)) lut (.I0(1'b0), .I1(left[i]), .I2(right[i]), .I3(carry[i]), .O(s[i]));
      if (i + 1 < WIDTH)
        SB_CARRY chain (.I0(left[i]), .I1(right[i]), .CI(carry[i]), .CO(carry[i+1]));
    end
  endgenerate
`else
  wire [WIDTH-1:0] left = {WIDTH{G[0]}} & ~b & ~a | {WIDTH{G[1]}} & ~b & a
      | {WIDTH{G[2]}} & b & ~a | {WIDTH{G[3]}} & b & a;
  wire [WIDTH-1:0] right = {WIDTH{F[0]}} & ~d & ~c & ~b | {WIDTH{F[1]}} & ~d & ~c & b
      | {WIDTH{F[2]}} & ~d & c & ~b | {WIDTH{F[3]}} & ~d & c & b
      | {WIDTH{F[4]}} & d & ~c & ~b | {WIDTH{F[5]}} & d & ~c & b
      | {WIDTH{F[6]}} & d & c & ~b | {WIDTH{F[7]}} & d & c & b;
  assign s = left + right;
`endif
endmodule
