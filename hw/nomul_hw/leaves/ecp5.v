  // The LUT in front of the carry has four inputs: it takes in both functions. Where it is 0, the carry is what the LUT
  // would be with c = d = 0: g, since f is 0 there.
  localparam PAIRS = (WIDTH + 1) / 2;
  // Of an odd width, a LUT is left over. In front, with nothing in it, it makes the carry 0 that the chain begins with,
  // whatever CIN is: so place and route need not put two more LUTs there.
  localparam LEAD = WIDTH % 2;
  localparam [15:0] LUT = {4{G}} ^ {{2{F[7]}}, {2{F[6]}}, {2{F[5]}}, {2{F[4]}}, {2{F[3]}}, {2{F[2]}}, {2{F[1]}}, {2{F[0]}}};
  wire [2*PAIRS-1:0] ai = a << LEAD, bi = b << LEAD, ci = c << LEAD, di = d << LEAD, si;
  wire [PAIRS:0] carry;
  assign carry[0] = 1'b0;
  assign s = si[LEAD+:WIDTH];
  genvar i;
  generate
    for (i = 0; i < PAIRS; i = i + 1) begin : pair
      CCU2C #(.INIT0(i < LEAD ? 16'b0 : LUT), .INIT1(LUT), .INJECT1_0("NO"), .INJECT1_1("NO")) cell_i (
          .CIN(carry[i]),
          .A0(ai[2*i]), .B0(bi[2*i]), .C0(ci[2*i]), .D0(di[2*i]), .S0(si[2*i]),
          .A1(ai[2*i+1]), .B1(bi[2*i+1]), .C1(ci[2*i+1]), .D1(di[2*i+1]), .S1(si[2*i+1]),
          .COUT(carry[i+1]));
    end
  endgenerate
